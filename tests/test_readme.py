"""README and docs: each Python block runs, each command is accepted, each link and number is right."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from h2c_hf.atlas import MODELS
from h2c_hf.cli import parser_of
from h2c_hf.configs import names


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]


def run(page: str, replacements: dict[str, str], monkeypatch, tmp_path) -> dict:
    """Execute a page's only Python block, with ids that are not at hand replaced; return its variables."""
    (block,) = re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL)
    for old, new in replacements.items():
        assert old in block
        block = block.replace(old, new)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    variables = {}
    exec(compile(block, page, "exec"), variables)
    return variables


@pytest.mark.parametrize("page", ["README.md", "docs/using.md"])
def test_loading_a_bridge(page, monkeypatch, tmp_path, capsys):
    run(page, {"hub_configs/atlas": str(ROOT / "hub_configs" / "atlas")}, monkeypatch, tmp_path)
    assert capsys.readouterr().out.strip() == "Algeria"


def test_training_a_pair(monkeypatch, tmp_path):
    replacements = {
        "meta-llama/Llama-3.1-8B-Instruct": str(MODELS / "sharer"),
        "Qwen/Qwen2.5-0.5B-Instruct": str(MODELS / "receiver"),
        "outputs/my-bridge": str(tmp_path / "bridge"),
    }
    variables = run("docs/training.md", replacements, monkeypatch, tmp_path)
    assert (tmp_path / "bridge" / "model.safetensors").exists()
    assert variables["trainer"].state.global_step == 2
    assert "Linear4bit" in str(variables["sharer"])


def commands() -> list[tuple[str, str]]:
    """(page, command) of each line of the shell blocks that begins with `h2c`."""
    blocks = [
        (page, block)
        for page, text in TEXTS.items()
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    ]
    return [(page, line) for page, block in blocks for line in block.splitlines() if line.startswith("h2c ")]


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_accepted(page, line):
    command, *arguments = shlex.split(line, comments=True)[1:]
    options = parser_of(command).parse_args(arguments)
    config = getattr(options, "config", None)
    copied = "my-pair/training.yaml"  # by `h2c configs copy`, in the line before
    # CONFIG.yaml: the reader's own.
    assert config in (None, copied, *names()) or config.removesuffix(".yaml").isupper()


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[page])
    for link in links:
        assert link.startswith("http") or ((ROOT / page).parent / link).exists(), link


def test_the_index_lists_all_pages():
    listed = set(re.findall(r"\]\((\w+\.md)\)", TEXTS["docs/index.md"]))
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


@pytest.mark.parametrize(("row", "form"), [("1,341 questions", "methods"), ("400 passages", "hand_off")])
def test_the_first_table_is_that_of_the_report(row, form):
    methods = json.loads((ROOT / "hub_configs" / "atlas" / "report.json").read_text())[form]
    (line,) = [line for line in README.splitlines() if line.startswith("|") and row in line]
    control = max(("shuffled", "zeros", "noise", "adapter"), key=lambda name: methods[name]["accuracy"])
    expected = [f"{100 * methods[name]['accuracy']:.1f} %" for name in ("receiver", "h2c", control, "sharer")]
    assert re.findall(r"[\d.]+ %", line) == expected
    assert row.startswith(f"{methods['h2c']['n']:,} ")


@pytest.mark.parametrize(
    ("row", "name"),
    [("passages of an invented fact", "facts_1"), ("passages whose answer is a word", "words_new")],
)
def test_the_rows_of_published_models_are_those_of_their_report(row, name):
    found = json.loads((ROOT / "hub_configs" / "gemma-3-270m_to_smollm2-135m" / "report.json").read_text())[
        "sets"
    ][name]
    (line,) = [line for line in README.splitlines() if line.startswith("|") and row in line]
    methods = found["methods"]
    control = max(("shuffled", "zeros", "noise"), key=lambda name: methods[name]["accuracy"])
    expected = [methods[name]["accuracy"] for name in ("receiver", "h2c", control, "sharer")]
    assert re.findall(r"[\d.]+ %", line) == [f"{100 * value:.1f} %" for value in expected]
    assert f" {found['n']} " in line


def test_the_first_screen_comes_before_the_rest():
    first = README.partition("\n## ")[0]
    places = [
        first.index(part)
        for part in ("docs/h2c.svg", "best control", "```python", "./scripts/quickstart", "./scripts/test")
    ]
    assert places == sorted(places)
    assert len(first.splitlines()) <= 45


@pytest.mark.parametrize("path", re.findall(r"^\| `([^`]+)`", TEXTS["docs/parts.md"], re.MULTILINE))
def test_the_parts_of_the_package(path):
    assert (ROOT / path).exists()


def test_the_reference_bridge_has_the_parameters_it_says():
    from transformers import LlamaConfig, Qwen2Config

    from h2c_hf.modeling import H2CBridgeConfig, H2CBridgeModel

    llama = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    qwen = Qwen2Config(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2)
    published = H2CBridgeConfig.from_pretrained(ROOT / "hub_configs" / "llama-3.1-8b_to_qwen2.5-0.5b")
    with torch.device("meta"):
        new, old = (
            H2CBridgeModel(config).num_parameters() / 1e6
            for config in (H2CBridgeConfig.from_pair(llama, qwen), published)
        )
    assert f"{new:.1f} million parameters ({old:.1f} in the published form" in TEXTS["docs/training.md"]
