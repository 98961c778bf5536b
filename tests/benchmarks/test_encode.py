import json

from h2c_hf.benchmarks.encode import main


def test_the_benchmark_of_encoding_reports_both_ratios(real_data, tmp_path, capsys):
    assert (
        main(
            [
                "--real",
                str(real_data),
                "--conversations=8",
                "--rounds=2",
                f"--json={tmp_path / 'encode.json'}",
            ]
        )
        == 0
    )
    report = json.loads((tmp_path / "encode.json").read_text())
    rounds = {name: len(seconds) for name, seconds in report["seconds"].items()}
    assert report["conversations"] == 8 and rounds == {"plain": 2, "encode": 2, "batched": 2}
    for name in ("encode", "batched"):
        ratio = report["ratios"][name]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert "times the two plain calls" in capsys.readouterr().out
