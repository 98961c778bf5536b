import copy
import json

import pytest
import torch
from pairs import VOCABULARY, tiny_model

from h2c_hf.benchmarks import bridge, generate, main
from h2c_hf.benchmarks.pairs import pair, repeat_layer


SIZES = ["--pair=tiny", "--batches", "1", "2", "--tokens", "8", "16", "--rounds=2", "--most_tokens=16"]


def run(name: str, arguments: list[str], folder) -> dict:
    assert main([name, *arguments, f"--output={folder / 'result.json'}"]) == 0
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / "result.json").read_text())


def test_the_bridge_is_measured_folded_and_as_trained(tmp_path, capsys):
    result = run("bridge", SIZES, tmp_path)
    assert [(row["batch"], row["tokens"]) for row in result["sizes"]] == [(1, 8), (1, 16), (2, 8)]
    for row in result["sizes"]:
        ratios = sorted(
            theirs / ours
            for theirs, ours in zip(row["seconds"]["first"], row["seconds"]["folded"], strict=True)
        )
        assert [row["folded"]["min"], row["folded"]["max"]] == ratios
    assert f"median over sizes: folded {result['median']['folded']:.2f}" in capsys.readouterr().out


def test_bridges_that_differ_are_not_compared():
    cache = pair(32, 0.0, torch.device("cpu")).eval().prefill(torch.arange(1, 9)[None])
    other = copy.deepcopy(cache)
    bridge.check_same(cache, cache, other)
    other.layers[3].values = other.layers[3].values + 0.1
    with pytest.raises(ValueError, match="the largest difference in values is 0.1"):
        bridge.check_same(cache, cache, other)


def test_the_first_token_is_measured_against_its_parts(tmp_path, capsys):
    result = run("generate", SIZES, tmp_path)
    row = result["sizes"][0]
    floor = [
        sum(row["seconds"][name][number] for name in ("sharer", "prefill", "step")) for number in range(2)
    ]
    ratios = sorted(taken / least for taken, least in zip(row["seconds"]["h2c"], floor, strict=True))
    assert [row["over_floor"]["min"], row["over_floor"]["max"]] == pytest.approx(ratios)
    ratios = sorted(
        taken / own for taken, own in zip(row["seconds"]["h2c"], row["seconds"]["sharer_alone"], strict=True)
    )
    assert [row["over_sharer"]["min"], row["over_sharer"]["max"]] == ratios
    printed = capsys.readouterr().out
    assert all(title in printed for title in generate.TITLES.values())


@torch.no_grad()
def test_layers_with_one_set_of_weights_compute_what_copies_would():
    model, one = (tiny_model("llama", num_hidden_layers=1) for _ in range(2))
    repeat_layer(model, 3)
    copies = tiny_model("llama", seed=1, num_hidden_layers=3)
    copies.load_state_dict(model.state_dict())
    assert len({parameter.data_ptr() for parameter in model.parameters()}) == len(list(one.parameters()))
    ids = torch.randint(1, VOCABULARY, (2, 9))
    generated, expected = (
        each.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0) for each in (model, copies)
    )
    assert torch.equal(generated, expected) and torch.equal(model(ids).logits, copies(ids).logits)


def test_memory_is_that_of_either_way(tmp_path, capsys):
    result = run("memory", SIZES, tmp_path)
    for row in result["sizes"]:
        assert row["ratio"]["median"] == row["peak_bytes"]["ours"] / row["peak_bytes"]["first"] < 1
    assert "kB/token" in capsys.readouterr().out


def test_a_training_step_is_measured_against_the_first(tmp_path, capsys):
    result = run(
        "train",
        ["--pair=tiny", "--batch=2", "--prompt_tokens=6", "--target_tokens=4", "--rounds=2"],
        tmp_path,
    )
    assert [len(result[key][name]) for key in ("seconds", "peak_bytes") for name in ("ours", "first")] == [
        2
    ] * 4
    assert result["ratios"]["memory"]["max"] < 1
    assert "throughput, ours / first" in capsys.readouterr().out
