"""``python -m segunc_ops.cli``, the same as ``segunc``."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
