"""Requests and a task of lm-eval about Atlas, for its tests."""

import random

from lm_eval.api.instance import Instance

from h2c_hf.atlas.facts import load_facts
from h2c_hf.atlas.questions import atlas_questions, statement
from h2c_hf.evaluation.lm_eval_model import H2CLM
from h2c_hf.prompts import user_turn


QUESTIONS = atlas_questions("test")[:200]
TASK = {
    "task": "atlas_choice",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\n{% for choice in choices %}{{'ABCD'[loop.index0]}}. {{choice}}\n"
    "{% endfor %}Answer with one letter.",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=index) for index, args in enumerate(arguments)
    ]


def chat(lm: H2CLM, text: str) -> str:
    return lm.apply_chat_template(user_turn(text))


def text_of(count: int, seed: int = 0) -> str:
    facts = random.Random(seed).sample(load_facts(), count)
    return " ".join(statement(fact) for fact in facts)
