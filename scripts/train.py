"""Train a bridge: `accelerate launch scripts/train.py CONFIG.yaml --field value`; the same as `h2c train`."""

import sys

from h2c_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
