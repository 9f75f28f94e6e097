"""Settings of all tests: hypothesis draws the same examples in every run, and has no deadline on a busy machine."""

from hypothesis import settings

settings.register_profile("zs2", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("zs2")
