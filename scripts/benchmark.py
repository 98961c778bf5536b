"""Measure a part of the package against its plain form: `python scripts/benchmark.py train --help`."""

import sys

from h2c_hf.benchmarks import main


if __name__ == "__main__":
    sys.exit(main())
