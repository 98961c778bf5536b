from pathlib import Path

import pytest

from h2c_hf.config_parser import read_yaml
from h2c_hf.pair import Pair
from h2c_hf.training.arguments import parse


MINIMAL = "sharer: atlas\nreceiver: atlas\ntrain_data: [{path: atlas}]\noutput_dir: out\n"


@pytest.fixture
def config(tmp_path):
    def write(text: str = "", base: str = MINIMAL) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(base + text)
        return str(path)

    return write


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(config):
    path = config("learning_rate: 2e-4\nmax_steps: 7\ndropout: 0.2\n")
    h2c, training = parse([path, "--max_steps", "9", "--gate-init", "0.5"], "test")
    assert (training.learning_rate, training.max_steps, training.lr_scheduler_type) == (2e-4, 9, "cosine")
    assert (h2c.sharer, h2c.dropout, h2c.gate_init, h2c.ffn_multiplier) == ("atlas", 0.2, 0.5, None)
    assert [source.path for source in h2c.train_data] == ["atlas"]


def test_sources_can_be_given_on_the_command_line(config):
    h2c, _ = parse(
        [config(), "--train_data", "path=cais/mmlu,name=all,split=auxiliary_train,weight=0.2", "atlas"],
        "test",
    )
    assert [(s.path, s.name, s.split, s.weight) for s in h2c.train_data] == [
        ("cais/mmlu", "all", "auxiliary_train", 0.2), ("atlas", None, "train", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("learning_rat: 1\n", [], r"no field 'learning_rat' \(.*config.yaml\); did you mean 'learning_rate'"),
        ("", ["--max_step", "3"], r"no field 'max_step' \(the command line\); did you mean 'max_steps'"),
        ("", ["--zzzz", "3"], r"no field 'zzzz' \(the command line\)\.$"),
        ("", ["stray"], "'stray' on the command line belongs to no field; expected --field value"),
        ("", ["--max_steps", "many"], "invalid int value: 'many'"),
        ("sharer_quantization: nf5\n", [], "nf5"),
        ("validation_data: [{pth: atlas}]\n", [], "'pth'.*did you mean 'path'"),
        ("validation_fraction: 1.5\n", [], "validation_fraction is 1.5; expected at least 0 and less than 1"),
        (
            "validation_fraction: 0.1\nvalidation_data: [atlas]\n",
            [],
            "validation_data and validation_fraction are both given",
        ),
        ("eval_strategy: epoch\n", [], "eval_strategy asks for evaluation, but there is no validation_data"),
        ("validation_data: [{path: atlas, split: 'test[:9]'}]\n", [], "a test split is for reports"),
        ("validation_data: [atlas]\n", [], "a source is in train_data or guard_data, and in validation_data"),
        ("early_stopping_patience: 2\n", [], "early_stopping_patience needs eval_strategy"),
        ("streaming: true\n", [], "streaming needs max_steps"),
        ("muon: true\noptim: adafactor\n", [], "muon stands in for AdamW; .* got adafactor"),
        ("muon: true\nfsdp: full_shard\n", [], "muon works on whole matrices; expected no fsdp"),
        ("token_hidden_size: 64\nfit_examples: 0\n", [], "expected fit_examples above 0"),
        ("token_hidden_size: 64\nsharer_states: states\n", [], "which is learned from the Sharer"),
        ("bf16: true\nfp16: true\nuse_cpu: true\n", [], "fp16.*bf16"),
    ],
)
def test_a_wrong_or_contradictory_field_is_refused_in_a_sentence(config, text, arguments, message):
    with pytest.raises(ValueError, match=message):
        parse([config(text), *arguments], "test")


def test_what_is_missing_is_named(config):
    with pytest.raises(
        ValueError, match="receiver is missing; expected it in the yaml file or as --receiver VALUE"
    ):
        parse([config(base="sharer: atlas\ntrain_data: [atlas]\n")], "test")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file '.*none.yaml'; expected a yaml file of fields"):
        parse([str(tmp_path / "none.yaml")], "test")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="holds a list; expected a mapping"):
        read_yaml(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"broken.yaml is not yaml"):
        read_yaml(tmp_path / "broken.yaml")


def test_a_bridge_to_go_on_from_is_of_the_form_that_is_asked_for(config):
    bridge = Path(__file__).parents[2] / "hub_configs" / "atlas"
    same, other = (["--init_from", str(bridge), "--num_attention_heads", heads] for heads in ("8", "4"))
    assert Pair(parse([config(), *same], "test")[0]).bridge_config().num_attention_heads == 8
    with pytest.raises(
        ValueError,
        match="init_from is a bridge with num_attention_heads 8, and num_attention_heads is 4; expected the "
        "same",
    ):
        Pair(parse([config(), *other], "test")[0]).bridge_config()
