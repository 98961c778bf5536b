"""The main job from end to end, on two published language models: fetch, train briefly, measure, draw, ask.

The data is made from Atlas: invented facts that only the Sharer reads. `training.yaml` of the pair is the
long run.
"""

from pathlib import Path

from ..configs import HUB_CONFIGS, names
from ..evaluation.evaluate import main as evaluate
from ..evaluation.runner import MAX_ANSWER_TOKENS
from ..hints import next_commands
from ..hub.models import PUBLISHED, fetch
from ..loading import load_pair
from ..prompts import open_prompt, user_turn, with_passage
from ..reports.schema import load_report
from ..training.train import main as train
from ..visualization.figures import draw


FILES = ("quickstart.yaml", "quickstart_evaluation.yaml")
# Pasted texts, of which the Receiver reads the questions alone.
PASTED = (
    (
        "The harbour of Velm was closed on Monday. Its new captain is called Mirandel.",
        "Who is the new captain of the harbour of Velm?",
    ),
    (
        "Dear all, the meeting about the budget is moved to Thursday. Please bring the tables.",
        "To which day is the meeting moved?",
    ),
    (
        "The museum keeps three maps. The oldest of them was drawn in Lisbon.",
        "In which city was the oldest map drawn?",
    ),
)


def quickstart_pair(pair: str, output: str | Path, seed: int = 0, steps: int | None = None) -> int:
    """Run everything and write `output`/{bridge/, report/}.

    Args:
        pair: a folder of `hub_configs` with the yaml files `FILES`.
        steps: of training, instead of those in the yaml file.

    Returns:
        0, or the exit status of the part that failed.

    Raises:
        ValueError: for another pair.
    """
    if pair not in names(FILES[0]):
        raise ValueError(
            f"There is no quickstart for the pair {pair!r}; expected one of "
            f"{', '.join(['atlas', *names(FILES[0])])}."
        )
    output = Path(output)
    # Before the work: a path that cannot be written to is refused here.
    output.mkdir(parents=True, exist_ok=True)
    training, evaluation = (HUB_CONFIGS / pair / name for name in FILES)
    for name in PUBLISHED:
        fetch(name)
    more = [] if steps is None else ["--max_steps", str(steps)]
    if status := train([str(training), "--seed", str(seed), "--output_dir", str(output / "bridge"), *more]):
        return status
    if status := evaluate(
        [str(evaluation), "--model", str(output / "bridge"), "--output_dir", str(output / "report")]
    ):
        return status
    draw(load_report(output / "report" / "report.json"), output / "report" / "figures")
    print("\nThe Sharer reads the text; the Receiver reads the question, and answers:")
    for (passage, question), answer in zip(PASTED, ask_loaded(output / "bridge"), strict=True):
        print(f"  {passage}\n    {question} -> {answer}")
    next_commands(
        f"h2c chat {output / 'bridge'}", f"h2c demo {output / 'bridge'}", f"h2c train {pair} --dry_run"
    )
    return 0


def ask_loaded(bridge: Path) -> list[str]:
    """Load the saved folder again, and answer the pasted texts."""
    model, processor = load_pair(str(bridge))
    answers = []
    for passage, question in PASTED:
        prompt = open_prompt({"question": question})
        inputs = processor.apply_chat_template(user_turn(prompt), user_turn(with_passage(passage, prompt)))
        ids = model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
        answers.append(
            processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )
    return answers
