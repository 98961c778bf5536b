# Sourced by the other scripts: makes .venv where it is missing and installs what is needed, once for each setup.cfg.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A tested version: an unpinned one can bring gigabytes of CUDA wheels to a machine without a GPU.
TORCH="torch==2.13.0"

python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "Python 3.10 or newer is needed; '$python' is $("$python" --version 2>&1 || echo missing). Set PYTHON to another one." >&2
  exit 1
fi

stamp=".venv/installed-$(cat setup.cfg pyproject.toml scripts/_setup.sh | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "Installing into .venv (once) ..."
  .venv/bin/python -c 'import torch' 2>/dev/null || .venv/bin/python -m pip install --quiet --disable-pip-version-check "$TORCH"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
  touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
