"""The command line as people meet it: help, version, completion, Ctrl-C, a closed pipe, what comes next."""

import configparser
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import h2c_hf
from h2c_hf.cli import COMMANDS, main, parser_of
from h2c_hf.configs import HUB_CONFIGS
from h2c_hf.evaluation.arguments import METHODS as NAMES


ROOT = Path(__file__).parent.parent


def h2c(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "h2c_hf", *arguments], capture_output=True, text=True, **kwargs
    )


def test_the_version_is_in_one_place():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: h2c_hf.__version__"
    assert setup["metadata"]["url"] == h2c_hf.REPOSITORY
    assert h2c("--version").stdout == f"h2c {h2c_hf.__version__}\n"


def test_alone_it_lists_the_commands(capsys):
    listings = []
    for arguments in ([], ["--help"], ["help"]):
        assert main(arguments) == 0
        listings.append(capsys.readouterr().out)
    assert listings[0] == listings[1] == listings[2]
    assert all(f"\n  {name} " in listings[0] for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_neither_torch_nor_transformers(command):
    code = (
        f"import sys; from h2c_hf.cli import main; status = main([{command!r}, '--help']); "
        "sys.exit(status or bool({'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: h2c {command}"), (
        done.stdout[-500:] + done.stderr
    )


def test_help_of_train_lists_its_own_fields_first(capsys):
    assert main(["help", "train"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("--sharer ") < shown.index("--train_data") < shown.index("--learning_rate")
    assert "--help_all" in shown and "--adam_beta2" not in shown
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help_all"])
    assert ended.value.code == 0 and "--adam_beta2" in capsys.readouterr().out


def test_the_names_of_the_methods_are_those_that_are_registered():
    from h2c_hf.evaluation.methods import METHODS

    assert set(METHODS) == set(NAMES)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("h2c tra", ["train "]),
        ("h2c push --dry", ["--dry_run "]),
        ("h2c train at", ["atlas "]),
        ("h2c evaluate --hand_off_f", ["--hand_off_facts "]),
    ],
)
def test_the_shell_completes(line, expected, tmp_path):
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "h2c_hf"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert answer.read_text().split("\n") == expected


def test_configs_are_listed_and_copied(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["configs"]) == 0
    assert "atlas\n" in capsys.readouterr().out
    assert main(["configs", "copy", "atlas", "mine"]) == 0
    assert {path.name for path in Path("mine").iterdir()} == {"training.yaml", "evaluation.yaml"}
    assert Path("mine/training.yaml").read_bytes() == (HUB_CONFIGS / "atlas" / "training.yaml").read_bytes()
    assert "h2c train mine/training.yaml --dry_run" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["atlas", "hub_configs/atlas", "hub_configs/atlas/training.yaml"])
def test_a_config_is_a_name_a_folder_or_a_file(config, monkeypatch):
    from h2c_hf.training.arguments import parse

    monkeypatch.chdir(ROOT)
    h2c_arguments, training = parse([config], "h2c train")
    assert (h2c_arguments.sharer, training.muon, training.logging_steps) == ("atlas", True, 10)


def test_a_closed_pipe_ends_quietly():
    command = f"{sys.executable} -m h2c_hf report hub_configs/atlas | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("command", "told"), [("report", "."), ("evaluate", "; the same command goes on where it stopped.")]
)
def test_ctrl_c_is_told_in_one_line(command, told, monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("h2c_hf.cli.import_module", interrupted)
    assert main([command, "hub_configs/atlas"]) == 130
    assert capsys.readouterr().err == f"h2c: {command} was stopped by Ctrl-C{told}\n"


def test_ctrl_c_reaches_a_real_process():
    process = subprocess.Popen(
        [sys.executable, "-m", "h2c_hf", "evaluate", "atlas", "--output_dir", "/nowhere/out"],
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONVERBOSE": "1"},
    )  # fmt: skip
    for line in process.stderr:
        if "import 'torch'" in line or "torch._C" in line:  # in the middle of the imports
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert "h2c: evaluate was stopped by Ctrl-C" in rest and "Traceback" not in rest


def test_next_commands_are_commands(capsys):
    assert main(["report", str(ROOT / "hub_configs" / "atlas")]) == 0
    out, err = capsys.readouterr()
    assert "Next" not in out
    line = err.splitlines()[-1].strip()
    assert line == f"h2c plot {ROOT}/hub_configs/atlas"
    parser_of("plot").parse_args(line.split()[2:])
