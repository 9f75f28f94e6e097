"""The command `python tests/fuzz`: see fuzzing.py."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from fuzzing import main  # noqa: E402  (the paths come first)

sys.exit(main())
