"""`python -m zs2.models`: see cli/model_list.py."""

import sys

from zs2.cli.model_list import main

if __name__ == "__main__":
    sys.exit(main())
