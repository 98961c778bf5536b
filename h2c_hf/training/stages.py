"""A curriculum in one yaml: `stages`, each a run that goes on from the bridge of the one before.

    max_steps: 200
    stages:
      - {learning_rate: 5.0e-4, train_data: [{path: texts.jsonl, form: repeat, fewest: 2, most: 8}]}
      - {learning_rate: 3.0e-4, train_data: [{path: atlas, form: words, words: texts.jsonl}]}

The fields of a stage stand over those of the file, and those of the command line over both. All stages but
the last write to a folder `stage_N` in the output folder, and are not pushed.
"""

from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_NAME

from .arguments import H2CArguments, H2CTrainingArguments, parse


SET_HERE = ("stages", "output_dir", "init_from")  # of each stage, by its place


def runs(arguments: list[str]) -> list[tuple[H2CArguments, H2CTrainingArguments]]:
    """Return the arguments of every stage, in order; of the one run where the file has no `stages`. A run
    that is resumed begins after the last stage that has ended.

    Raises:
        ValueError: before the first stage starts: for stages that are no mappings, for a checkpoint folder to
            resume from, which would be that of one stage, and for fields as `parse` does.
    """
    h2c, training = parse(arguments, "h2c train")
    if not h2c.stages:
        return [(h2c, training)]
    for number, stage in enumerate(h2c.stages, 1):
        if not isinstance(stage, dict):
            raise ValueError(f"Stage {number} is {stage!r}; expected a mapping of fields to values.")
        if taken := [name for name in SET_HERE if name in stage]:
            raise ValueError(f"Stage {number} has {taken[0]!r}; expected it outside the stages.")
    resume = training.resume_from_checkpoint
    if resume not in (None, False, True, "false", "true", "True"):
        raise ValueError(
            f"resume_from_checkpoint is {resume!r}; expected true with stages: each has checkpoints of its "
            "own."
        )
    output, found, first = Path(training.output_dir), [], 0
    for number, stage in enumerate(h2c.stages, 1):
        staged, trained = parse(arguments, "h2c train", over=stage)
        if number > 1 and not h2c.dry_run:
            staged.init_from = str(output / f"stage_{number - 1}")
        if number < len(h2c.stages):
            trained.output_dir = str(output / f"stage_{number}")
            trained.push_to_hub = False
            ended = (Path(trained.output_dir) / SAFE_WEIGHTS_NAME).is_file()
            if ended and resume not in (None, False, "false"):
                first = number
        found.append((staged, trained))
    return found[first:]
