"""Run the page's command with arguments, where no socket may connect to another machine: an attempt is printed."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from network import stay_here

    stay_here(lambda what: print(f"BLOCKED {what}", flush=True))
    from zs2.app.__main__ import main

    sys.exit(main(sys.argv[1:]))
