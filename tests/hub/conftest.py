import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from server import Hub


ROOT = Path(__file__).parents[2]
ATLAS = ROOT / "hub_configs" / "atlas"


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def wire(hub, tmp_path):
    """The environment of a process that talks to the test Hub, as user `u`, with an empty cache."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING", "PYTHONPATH"))
    }
    return {
        **kept, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_u", "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "no_proxy": "127.0.0.1",
    }  # fmt: skip


@pytest.fixture
def h2c(wire):
    """Run `h2c ARGUMENTS` against the test Hub."""

    def run(*arguments, **environment) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "h2c_hf.cli", *map(str, arguments)]
        return subprocess.run(
            command, cwd=ROOT, env={**wire, **environment}, capture_output=True, text=True, timeout=280
        )

    return run


@pytest.fixture
def fresh(wire, tmp_path):
    """Run a script in a process without this package; return its last line, which is printed JSON."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(script: str, status: int = 0, **environment) -> str:
        command = [sys.executable, "-c", f"import sys\nsys.modules['h2c_hf'] = None\n{script}"]
        done = subprocess.run(
            command, cwd=folder, env={**wire, **environment}, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == status, done.stdout[-1000:] + done.stderr[-4000:]
        return done.stdout if status == 0 else done.stderr

    return run


@pytest.fixture
def online(hub, monkeypatch, tmp_path) -> HfApi:
    """This process talks to the test Hub as user `u`: as `wire`, without the seconds of its start."""
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    # From 5.24 on, transformers keeps the endpoint of its first use.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_u")
    # The client waits half a minute before it gives up.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return HfApi(endpoint=hub.endpoint, token="hf_u")


@pytest.fixture
def bridge(tmp_path) -> Path:
    """A copy of the Atlas bridge's folder, to be pushed."""
    return shutil.copytree(ATLAS, tmp_path / "bridge")
