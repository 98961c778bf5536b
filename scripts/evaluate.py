"""Evaluate a bridge: `accelerate launch scripts/evaluate.py CONFIG.yaml --field value`, as `h2c evaluate`."""

import sys

from h2c_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
