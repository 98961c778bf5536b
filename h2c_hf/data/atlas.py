"""Atlas as a data source: its questions, passages, chats and sentences, as records."""

from typing import TYPE_CHECKING

from ..atlas.documents import atlas_quizzes
from ..atlas.facts import SPLITS, load_facts
from ..atlas.questions import atlas_passages, atlas_questions, atlas_told, statement
from .two_step import two_step_records
from .words import word_list_records, words_records
from .worlds import register_world


if TYPE_CHECKING:
    from .sources import DataSource


@register_world("atlas")
def atlas_records(source: "DataSource") -> list[dict]:
    """The records of a form.

    Raises:
        ValueError: for a split that Atlas has not, or facts a passage that it cannot have.
    """
    if source.split not in SPLITS:
        raise ValueError(f"atlas has no split {source.split!r}; expected one of {', '.join(SPLITS)}.")
    if source.form == "hand_off":
        return atlas_passages(source.split, source.facts, invented=True, values=source.values)
    if source.form == "words":
        return words_records(source)
    if source.form == "word_list":
        return word_list_records(source)
    if source.form == "two_step":
        return two_step_records(source)
    # By turns one that both models are told, and one that only the Receiver is told.
    if source.form == "told":
        both = zip(
            atlas_told(source.split, False, source.variants),
            atlas_told(source.split, True, source.variants),
            strict=True,
        )
        return [{"hint": None, "told": None, **pair[number % 2]} for number, pair in enumerate(both)]
    if source.form == "quiz":
        return atlas_quizzes(source.split, source.variants)
    if source.form == "repeat":
        return [{"text": statement(fact)} for fact in load_facts() if fact.split == source.split]
    return atlas_questions(source.split, source.variants)
