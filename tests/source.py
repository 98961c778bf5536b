"""The repository as the tests see it: its root, the bridge that ships, and a copy to build from."""

import subprocess
from pathlib import Path


ROOT = Path(__file__).parent.parent
ATLAS_BRIDGE = ROOT / "hub_configs" / "atlas"


def copy_source(folder: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for name in listed.decode().rstrip("\0").split("\0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder
