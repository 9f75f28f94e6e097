"""The version of zs2, and the revision of what it computes. They stand in every file of a clip."""

from __future__ import annotations

__version__ = "0.1.0"

# Raise it in the commit that makes the same settings give other pixels, beyond the rounding of the last bits. A replay
# of another revision's clip warns, a stream or a study of another one does not go on.
REVISION = 1


def revision_text(revision: object) -> str:
    """A revision for a message. Files from before the first one have none."""
    return "no revision (before 1)" if revision is None else f"revision {revision!r:.40}"
