"""How the default checkpoint is made: see README.md, and `python -m weights.recipe --help`."""
