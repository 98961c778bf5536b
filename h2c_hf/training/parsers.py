"""The argument parsers of train and precompute, and of other commands that train. Without torch."""

from ..command_line import Parser, add_fields
from ..configs import add_config
from .fields import H2CArguments, LoraArguments


COMMON = {
    "output_dir": "folder of checkpoints and of the trained bridge",
    "num_train_epochs": "passes over the training data (default: 3)",
    "max_steps": "optimizer steps, instead of epochs",
    "per_device_train_batch_size": "examples a device and step (default: 8)",
    "gradient_accumulation_steps": "batches a step (default: 1)",
    "learning_rate": "peak learning rate (default: 0.001)",
    "lr_scheduler_type": "schedule of the learning rate (default: cosine)",
    "warmup_steps": "steps of warm-up, or a share of all steps below 1 (default: 0.1)",
    "bf16": "compute in bfloat16, with fp32 weights of the bridge",
    "logging_steps": "steps between lines of the log (default: 10)",
    "eval_strategy": "validate: no, steps or epoch (default: no)",
    "eval_steps": "steps between validations, or a share of all steps below 1",
    "save_strategy": "save checkpoints: no, steps, epoch or best (default: steps)",
    "save_steps": "steps between checkpoints, or a share of all steps below 1 (default: 500)",
    "resume_from_checkpoint": "true: go on from the last checkpoint in output_dir",
    "load_best_model_at_end": "keep the checkpoint that validates best",
    "metric_for_best_model": "by which it is chosen (default: the loss)",
    "report_to": "wandb, tensorboard ... (default: none)",
    "push_to_hub": "upload the bridge while training and at the end",
    "hub_model_id": "the repo, user/name",
    "seed": "of everything random (default: 42)",
}


def train(command: str = "train") -> Parser:
    description = {
        "train": "Train a bridge for a pair of models on a mixture of data.",
        "precompute": "Write the Sharer's hidden states of a run's examples into the folder `sharer_states`, "
        "once, to train from them.",
        "lora": "Fine-tune the Receiver with LoRA on a run's data without a Sharer: the baseline that a "
        "bridge is compared with.",
    }[command]
    parser = Parser(
        f"h2c {command}",
        description,
        usage=f"h2c {command} CONFIG [--field VALUE ...]",
        epilog=f"`h2c {command} --help_all` lists every field of transformers' TrainingArguments.",
    )
    add_config(parser, "training.yaml")
    own = parser.add_argument_group("pair, bridge and data")
    add_fields(own, H2CArguments)
    if command == "lora":
        add_fields(parser.add_argument_group("adapter"), LoraArguments)
    stock = parser.add_argument_group("training", "All fields of TrainingArguments work; the most used are:")
    for name, text in COMMON.items():
        stock.add_argument(f"--{name}", help=text.replace("%", "%%"), metavar="VALUE")
    parser.add_argument(
        "--help_all", action="store_true", help="list every field of TrainingArguments too, and exit"
    )
    return parser


def precompute() -> Parser:
    return train("precompute")
