"""The command line as people meet it: real processes, no traceback for a user's mistake."""

import subprocess
import sys

import pytest


def h2c(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "h2c_hf.cli", *arguments], capture_output=True, text=True)


def test_help_names_the_commands():
    result = h2c("--help")
    assert result.returncode == 0
    assert "quickstart" in result.stdout and "atlas" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quickstart", "--output", "{file}/below"), "Not a directory"),
        (("atlas", "build", "--output", "{dir}/out", "--tables", "{dir}/missing"), "No such file or directory"),
        (("quickstart", "--seed", "one"), "invalid int value: 'one'"),
        (("dance",), "invalid choice: 'dance'"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    result = h2c(*(argument.format(file=tmp_path / "file", dir=tmp_path) for argument in arguments))
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
