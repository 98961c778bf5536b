"""`python -m h2c_hf <command>`: the same as `h2c <command>`."""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
