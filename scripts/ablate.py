"""Compare forms of the bridge on Atlas: `python scripts/ablate.py docs/ablation.yaml`; see docs/ablation.md."""

import sys

from h2c_hf.experiments.ablation import main


if __name__ == "__main__":
    sys.exit(main())
