import json

from h2c_hf.benchmarks.turns import main


def test_the_benchmark_times_every_turn_both_ways_and_says_what_is_allowed(tmp_path, capsys):
    small = ["--pair=tiny", "--turns=3", "--first_tokens=8", "--new_tokens=6", "--rounds=2"]
    assert main([*small, f"--output={tmp_path / 'turns.json'}"]) == 0
    result = json.loads((tmp_path / "turns.json").read_text())
    assert {name: [len(row) for row in rows] for name, rows in result["seconds"].items()} == {
        "kept": [3, 3],
        "whole": [3, 3],
    }
    assert result["allowed"] == 1 + 6 / 8
    assert result["holds"] == (result["ratios"]["kept"]["median"] <= result["allowed"])
    shown = capsys.readouterr().out
    assert "turn 3 <= turn 1 x (1 + 6 new tokens / 8 tokens of turn 1) = 1.75 x turn 1: " in shown
    assert (tmp_path / "turns.png").read_bytes().startswith(b"\x89PNG")
