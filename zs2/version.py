"""The version of zs2. It stands in every file that zs2 writes."""

__version__ = "0.1.0"
