import json

import pytest

from h2c_hf.benchmarks.states import main


def test_the_benchmark_trains_the_same_both_ways_and_says_what_the_store_costs(tmp_path, capsys):
    small = [
        "--examples=16",
        "--hidden_size=64",
        "--layers=2",
        "--rounds=2",
        "--batch_size=8",
        "--dtype=float32",
    ]
    assert main([*small, f"--json={tmp_path / 'states.json'}"]) == 0
    report = json.loads((tmp_path / "states.json").read_text())
    assert (
        len(report["live_losses"]) == 2 and len(report["live_seconds"]) == len(report["stored_seconds"]) == 2
    )
    assert report["stored_losses"] == pytest.approx(report["live_losses"], rel=1e-5)
    # two hidden states that are read (the embeddings and the first layer) x 64 x 4 bytes
    assert report["bytes_per_token"] == 2 * 64 * 4
    assert report["mb_per_thousand_tokens"] * 1e3 == pytest.approx(report["bytes_per_token"], rel=0.05)
    assert "MB per thousand tokens (512 bytes a token by formula)" in capsys.readouterr().out
