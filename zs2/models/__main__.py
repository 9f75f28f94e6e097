"""`python -m zs2.models`: the models that have a short name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from zs2.checkpoints.hub import DEFAULT_MODEL, SHORT_NAMES

TAKES = f"""\
--model takes one of these names, or any Stable Diffusion 1.x, 2.x or XL model: a folder in the diffusers layout, a
single .safetensors file, or its id on the hub, owner/name, or owner/name@revision for a branch, a tag or a commit. What
is here comes before an id. From the hub, only the files needed are downloaded, once. Each licence is the model's own:
read it on the model's page. Without --model it is {DEFAULT_MODEL}, which comes with zs2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns: the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m zs2.models",
        description="List the short names of models, with their ids on the hub and their licences.",
        epilog=TAKES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_args(argv)
    rows = [("name", "model", "licence"), *((name, *row) for name, row in SHORT_NAMES.items())]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, model, licence in rows:
        print(f"{name:<{first}}  {model:<{second}}  {licence}")
    print(f"\n{TAKES}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
