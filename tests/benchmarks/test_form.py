import json

from h2c_hf.benchmarks.form import main


def test_the_benchmark_compares_the_forms_on_one_pair(tmp_path, capsys):
    small = ["--pair=tiny", "--batches=2", "--tokens=8", "--rounds=2"]
    assert main([*small, f"--output={tmp_path / 'form.json'}"]) == 0
    result = json.loads((tmp_path / "form.json").read_text())
    (row,) = result["sizes"]
    assert (
        set(result["parameters"]) == {"message", "rewrite"}
        and result["parameters"]["message"] != result["parameters"]["rewrite"]
    )
    for seconds in (
        row["seconds"]["h2c"],
        row["seconds"]["after_first"]["receiver"],
        *result["training"]["seconds"].values(),
    ):
        assert len(seconds) == 2 and min(seconds) > 0
    floor = [
        sum(parts)
        for parts in zip(*(row["seconds"][name] for name in ("sharer", "prefill", "step")), strict=True)
    ]
    assert row["over_floor"]["max"] == max(
        ours / least for ours, least in zip(row["seconds"]["h2c"], floor, strict=True)
    )
    assert "training step over the rewriting form's" in capsys.readouterr().out
