from argparse import Namespace

import pytest

from h2c_hf.benchmarks.several_sharers import main, statements, two_passages


def test_only_one_of_two_passages_tells_the_answer():
    questions = two_passages(Namespace(split="validation", facts=8, questions=60))
    assert len(questions) == 60
    for question in questions:
        told, untold = statements(question["passage"]), statements(question["untold"])
        assert any(question["answers"][0] in statement for statement in told) and not told & untold
        assert sorted([question["first"], question["second"]]) == sorted(
            [question["passage"], question["untold"]]
        )
    assert 15 < sum(question["first"] == question["passage"] for question in questions) < 45


def test_a_run_names_every_way_and_too_many_questions_are_refused(capsys):
    assert main(["--split", "validation", "--questions", "2", "--facts", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["receiver", "told", "untold", "both", "shuffled"]
    with pytest.raises(ValueError, match="--questions is 1; expected 2 to"):
        main(["--questions", "1"])
