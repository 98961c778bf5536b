"""A curriculum in one yaml: `stages`, each a run that goes on from the bridge of the one before.

    max_steps: 200
    stages:
      - {learning_rate: 5.0e-4, train_data: [{path: texts.jsonl, form: repeat, fewest: 2, most: 8}]}
      - {learning_rate: 3.0e-4, train_data: [{path: atlas, form: words, words: texts.jsonl}]}

The fields of a stage stand over those of the file, and those of the command line over both. All stages but
the last write to a folder `stage_N` in the output folder, and are not pushed.
"""

from pathlib import Path

from .arguments import H2CArguments, H2CTrainingArguments, parse


WEIGHTS = "model.safetensors"  # stands in the output folder of a run that has ended


def runs(arguments: list[str], prog: str) -> list[tuple[H2CArguments, H2CTrainingArguments]]:
    """Return the arguments of every stage, in order; of the one run where the file has no `stages`. A stage
    that has ended is left out where the run is resumed.

    Raises:
        ValueError: for stages that are no list of mappings, and for fields as `parse` does, before the first
            stage starts.
    """
    h2c, training = parse(arguments, prog)
    if not h2c.stages:
        return [(h2c, training)]
    for number, stage in enumerate(h2c.stages, 1):
        if not isinstance(stage, dict) or "stages" in stage:
            raise ValueError(f"Stage {number} is {stage!r}; expected a mapping of fields to values.")
    output, found = Path(training.output_dir), []
    for number, stage in enumerate(h2c.stages, 1):
        staged = parse(arguments, prog, over=stage)
        if number > 1 and not h2c.dry_run:
            staged[0].init_from = str(output / f"stage_{number - 1}")
        if number < len(h2c.stages):
            staged[1].output_dir = str(output / f"stage_{number}")
            staged[1].push_to_hub = False
        found.append(staged)
    resumed = training.resume_from_checkpoint not in (None, False, "false")
    ended = [run for run in found[:-1] if resumed and (Path(run[1].output_dir) / WEIGHTS).is_file()]
    return found[len(ended) :]
