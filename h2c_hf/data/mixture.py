"""stub"""

from dataclasses import dataclass


@dataclass
class DataReport:
    text: str

    def __str__(self):
        return self.text

    def to_dict(self):
        return {}


def build_dataset(sources, processor, **kw):
    from datasets import concatenate_datasets

    from ..atlas.questions import atlas_questions
    from .examples import encode_questions

    ds = concatenate_datasets([encode_questions(processor, atlas_questions(s.split), getattr(s, "form", "choice")) for s in sources])
    return ds, DataReport("x")


def hold_out(*a): ...
