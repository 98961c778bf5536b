"""`h2c train CONFIG.yaml`, `accelerate launch scripts/train.py CONFIG.yaml`: train a bridge on a mixture."""

import contextlib
import gc
import json
import shlex
import shutil
import sys
from itertools import islice
from pathlib import Path

from datasets import concatenate_datasets
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import cached_file

from ..data.examples import H2CCollator
from ..data.rows import spread_rows
from ..hints import next_commands
from ..hub.licence import follow_licence
from ..loading import BUNDLED
from ..modeling import H2CForCausalLM, H2CProcessor
from ..pair import Pair
from .arguments import H2CArguments, H2CTrainingArguments
from .blank import BlankSharerCollator
from .callbacks import WrittenAnswers
from .data import Data, load_data
from .drafts import with_drafts
from .fit import fit_message
from .guard import with_guards
from .interrupt import SaveOnInterrupt
from .plan import describe
from .sharer_states import StoredStatesCollator, open_states
from .stages import runs
from .trainer import METRICS, H2CTrainer


RECIPE = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "muon", "adam_beta1", "adam_beta2",
    "adam_epsilon", "weight_decay", "max_grad_norm", "num_train_epochs", "max_steps", "bf16", "fp16", "seed",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run every stage; there is one, unless the yaml file has `stages`. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    complete, interrupted = True, False
    for h2c, training in runs(arguments):
        complete, interrupted = run(h2c, training)
        if not complete:
            break
        gc.collect()  # a Trainer stands in cycles, and would keep its Sharer beside the next one's
    if training.process_index == 0:
        next_commands(*following(arguments, training.output_dir, complete, h2c.dry_run))
    return 130 if interrupted and not complete else 0


def run(h2c: H2CArguments, training: H2CTrainingArguments) -> tuple[bool, bool]:
    """Plan, train and save one stage. Returns whether it came to its end, and whether Ctrl-C was pressed."""
    set_seed(training.seed)
    pair = Pair(h2c)
    checkpoint = checkpoint_to_resume(training)
    config = pair.bridge_config()  # a pair that cannot be joined is refused before the data is read
    if training.push_to_hub and not h2c.dry_run and training.process_index == 0:
        output = Path(training.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        from ..hub.push import make_repo  # which draws figures: only a run that pushes waits for that import

        repo = training.hub_model_id or output.absolute().name
        follow_licence(output, config, repo, token=training.hub_token)
        make_repo(repo, training.hub_private_repo, training.hub_token)
    processor = pair.processor()
    data = load_data(h2c, training, processor, pair.message_window())
    choose_metric(training, list(data.validation))
    if training.process_index == 0:
        print(describe(h2c, training, pair, data), flush=True)
    if h2c.dry_run:
        return True, False
    model = make_model(h2c, training, pair, processor, data, checkpoint)
    trainer = make_trainer(h2c, training, pair, processor, data, model)
    if trainer.is_world_process_zero():
        data.save(Path(training.output_dir))
        save_recipe(h2c, training, Path(training.output_dir))
        save_base_models(h2c, Path(training.output_dir))  # before the first push: each is to be loadable
    with pushing(training):
        with SaveOnInterrupt(trainer) as ctrl_c:
            trainer.train(resume_from_checkpoint=checkpoint)
        if h2c.streaming and trainer.is_world_process_zero():
            data.save(Path(training.output_dir))  # what was read of the stream is known now
        complete = finish(trainer)
    return complete, ctrl_c.interrupted


def following(arguments: list[str], output_dir: str, complete: bool, dry_run: bool) -> list[str]:
    """Return the commands that may come next."""
    if dry_run:
        return [command(arguments, without="--dry_run")]
    if not complete:
        return [command(arguments, "--resume_from_checkpoint true", without="--resume_from_checkpoint")]
    output = shlex.quote(output_dir)
    evaluation = evaluation_config(arguments)
    return [
        f"h2c chat {output}",
        f"h2c evaluate {evaluation} --model {output} --output_dir {output}-evaluation",
        f"h2c push {output} USER/NAME --dry_run",
    ]


def command(arguments: list[str], *more: str, without: str) -> str:
    """Return the command line of this run, without one option and with others, to be pasted."""
    kept, skip = [], False
    for argument in arguments:
        if argument.split("=")[0].replace("-", "_") == without.replace("-", "_"):
            skip = "=" not in argument
        elif not (skip and not argument.startswith("-")):
            kept.append(shlex.quote(argument))
            skip = False
        else:
            skip = False
    return " ".join(["h2c train", *kept, *more])


def evaluation_config(arguments: list[str]) -> str:
    """Return the evaluation config beside the training config: a name as "atlas", or a path."""
    given = next((argument for argument in arguments[:1] if not argument.startswith("-")), "atlas")
    if Path(given).is_file():
        beside = Path(given).parent / "evaluation.yaml"
        return shlex.quote(str(beside)) if beside.is_file() else "atlas"
    return shlex.quote(given)


def pushing(training: H2CTrainingArguments) -> contextlib.AbstractContextManager:
    """Tell a push that fails in the run in one sentence, with the folder that holds the trained bridge."""
    if not training.push_to_hub:
        return contextlib.nullcontext()
    from ..hub.push import told_of_pushing

    output = Path(training.output_dir)
    return told_of_pushing(
        training.hub_model_id or output.absolute().name, f"was not pushed to (the run so far is in {output})"
    )


def make_model(
    h2c: H2CArguments,
    training: H2CTrainingArguments,
    pair: Pair,
    processor: H2CProcessor,
    data: Data,
    checkpoint: str | None = None,
) -> H2CForCausalLM:
    """Return the pair with its bridge as it is before the first step; drafts and guards are added
    to the data. A bridge that has a `checkpoint` is not fitted to texts: its weights are there already."""
    # The data may have drawn numbers; the new bridge's weights depend on the seed alone.
    set_seed(training.seed)
    model = pair.model(training.device)
    if h2c.draft_tokens:
        add_drafts(h2c, training, model, processor, data)
    if not h2c.init_from and checkpoint is None:
        fit_new_message(h2c, training, model, processor, data)
    if data.guards is not None:
        move(model, training)
        if training.process_index == 0:  # a log file shows no bar, and this takes minutes on a CPU
            print(f"Writing the Receiver's own answers to {len(data.guards):,} guards.", flush=True)
        data.train = concatenate_datasets([data.train, with_guards(data.guards, model, processor)])
    return model


def make_trainer(
    h2c: H2CArguments,
    training: H2CTrainingArguments,
    pair: Pair,
    processor: H2CProcessor,
    data: Data,
    model: H2CForCausalLM,
) -> H2CTrainer:
    # One set is passed as it is, so that its metrics are plain `eval_loss` ...
    validation = (
        next(iter(data.validation.values())) if len(data.validation) == 1 else data.validation or None
    )
    trainer = H2CTrainer(
        model,
        training,
        processor,
        train_dataset=data.train,
        eval_dataset=validation,
        data_collator=make_collator(h2c, training, pair, processor, data),
    )
    if h2c.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(h2c.early_stopping_patience))
    if h2c.generations and data.answered:
        trainer.add_callback(WrittenAnswers(trainer, data.answered))
    return trainer


def move(model: H2CForCausalLM, training: H2CTrainingArguments) -> None:
    """Move the model to the run's device, unless the Sharer lies on several."""
    if getattr(model.sharer, "hf_device_map", None) is None:
        model.to(training.device)


def add_drafts(
    h2c: H2CArguments,
    training: H2CTrainingArguments,
    model: H2CForCausalLM,
    processor: H2CProcessor,
    data: Data,
) -> None:
    """Let the Sharer write drafts for all examples; the generation config asks for them from now on."""
    move(model, training)
    data.train = with_drafts(data.train, model, processor, h2c.draft_tokens)
    data.validation = {
        name: with_drafts(rows, model, processor, h2c.draft_tokens) for name, rows in data.validation.items()
    }
    model.generation_config.sharer_max_new_tokens = h2c.draft_tokens


def fit_new_message(
    h2c: H2CArguments,
    training: H2CTrainingArguments,
    model: H2CForCausalLM,
    processor: H2CProcessor,
    data: Data,
) -> None:
    """Fit a new bridge of the message form to the texts of the first examples; see `fit`. One without the
    Sharer in memory starts from random weights."""
    if model.config.bridge_form != "message" or not h2c.fit_examples:
        return
    if model.sharer is None:
        if training.process_index == 0:
            print("The message starts from random weights: without the Sharer in memory it cannot be fitted.")
        return
    examples = (
        list(islice(data.train, h2c.fit_examples))
        if h2c.streaming
        else data.train.select(spread_rows(len(data.train), h2c.fit_examples))
    )
    texts = processor.sharer_tokenizer.batch_decode(
        [example["sharer_input_ids"] for example in examples], skip_special_tokens=True
    )
    move(model, training)
    fitted = fit_message(model, processor, sorted(texts, key=len))
    if training.process_index > 0:
        return
    if "own" in fitted:
        print(
            f"Learned a dictionary of {fitted['words']:,} words: {fitted['own']:.1%} are nearest to the "
            "Receiver's embedding of the same characters; with the linear map alone, "
            f"{fitted['own_linear']:.1%}.",
            flush=True,
        )
    shares = " and ".join(f"{fitted[name]:.0%} of the variance of its {name}" for name in ("keys", "values"))
    print(f"Fitted the message to {len(texts):,} texts: it explains {shares}.", flush=True)


def make_collator(
    h2c: H2CArguments, training: H2CTrainingArguments, pair: Pair, processor: H2CProcessor, data: Data
) -> H2CCollator:
    """Return the collator for the Sharer's part: its prompt, its stored states, or zeros (the control)."""
    if h2c.blank_sharer:
        return BlankSharerCollator(processor, pair.bridge_config())
    if h2c.sharer_states:
        datasets = [data.train, *data.validation.values()]
        return StoredStatesCollator(
            processor, open_states(h2c, training, pair, processor.sharer_tokenizer, datasets)
        )
    return H2CCollator(processor)


def choose_metric(training: H2CTrainingArguments, names: list[str]) -> None:
    """Choose the metric of the "best" checkpoint.

    With several validation sets their metrics carry their names, and the stock default, the loss, is that of
    the first.

    Raises:
        ValueError: for a metric that none of them has.
    """
    if training.metric_for_best_model is None or not names:
        return
    asked = training.metric_for_best_model.removeprefix("eval_")
    prefixes = [f"{name}_" for name in names] if len(names) > 1 else [""]
    if asked == "loss":
        asked = f"{prefixes[0]}loss"
    known = [prefix + metric for prefix in prefixes for metric in METRICS]
    if asked not in known:
        raise ValueError(f"metric_for_best_model is {asked!r}; expected one of {', '.join(known)}.")
    training.metric_for_best_model = asked


def checkpoint_to_resume(training: H2CTrainingArguments) -> str | None:
    """The checkpoint folder that `resume_from_checkpoint` means: 'true' is the last one in `output_dir`.

    Raises:
        ValueError: for a folder that is no checkpoint, or an output folder with checkpoints that nobody asked
            to resume.
    """
    asked = training.resume_from_checkpoint
    last = get_last_checkpoint(training.output_dir) if Path(training.output_dir).is_dir() else None
    if asked in (None, False, "false"):
        if last is not None:
            raise ValueError(
                f"{training.output_dir} holds {Path(last).name} of an earlier run; expected "
                "--resume_from_checkpoint true to go on from it, or another --output_dir."
            )
        return None
    if asked in (True, "true", "True"):
        return last
    if not (Path(asked) / "trainer_state.json").is_file():
        raise ValueError(
            f"resume_from_checkpoint is {asked!r}, which holds no trainer_state.json; expected a checkpoint "
            "folder."
        )
    return asked


def finish(trainer: H2CTrainer) -> bool:
    """Save the trained bridge into the output folder, and push it if that is asked for. Return False if the
    run stopped before its end, after Ctrl-C or SIGTERM; then a checkpoint is there to go on from."""
    state, output = trainer.state, trainer.args.output_dir
    patience = [
        callback
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, EarlyStoppingCallback)
    ]
    stopped_early = any(
        callback.early_stopping_patience_counter >= callback.early_stopping_patience for callback in patience
    )
    if state.global_step < state.max_steps and not stopped_early:
        last = Path(get_last_checkpoint(output)).name
        print(
            f"Stopped before step {state.max_steps}; --resume_from_checkpoint true goes on from {last} in "
            f"{output}."
        )
        return False
    if trainer.is_world_process_zero():
        (Path(output) / "log_history.json").write_text(json.dumps(state.log_history, indent=1) + "\n")
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"Wrote the bridge to {output}")
    return True


def save_recipe(h2c: H2CArguments, training: H2CTrainingArguments, output: Path) -> None:
    """Write `training.json`: the recipe that the model card tells, and those of the bridges that the run goes
    on from, the first one's first; an empty one where it was not recorded."""
    recipe = {name: getattr(h2c, name) for name in ("sharer_quantization", "base_dtype", "max_length")}
    recipe |= {name: getattr(training, name) for name in RECIPE}
    batch = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    recipe["total_train_batch_size"] = batch
    if h2c.init_from:
        found = cached_file(
            h2c.init_from, "training.json",
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        before = json.loads(Path(found).read_text()) if found else {}
        recipe["earlier"] = [*before.pop("earlier", []), before]
    (output / "training.json").write_text(json.dumps(recipe, indent=1, default=str) + "\n")


def save_base_models(h2c: H2CArguments, output: Path) -> None:
    """Copy base models of the package beside their bridge, so that the folder works anywhere."""
    for role in ("sharer", "receiver"):
        if (name := getattr(h2c, role)) in BUNDLED:
            ignored = shutil.ignore_patterns("learning_curve.json", "tokenizer*")
            shutil.copytree(BUNDLED[name] / role, output / role, ignore=ignored, dirs_exist_ok=True)
