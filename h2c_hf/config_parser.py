"""Arguments of the commands: dataclasses, filled from a yaml file and the command line, which wins. Wrong
names are refused with the nearest right one."""

import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .configs import find


class ConfigParser(HfArgumentParser):
    """`HfArgumentParser` that takes a yaml file first and tells a mistake in one sentence: argparse would
    print the usage of all of `TrainingArguments`' fields before it."""

    def __init__(self, dataclasses, file: str, **kwargs):
        """file: the name of the yaml file in a folder of configs, as in `h2c train atlas`."""
        super().__init__(dataclasses, **kwargs)
        self.file = file

    def error(self, message: str):
        raise ValueError(f"{message}. `{self.prog} --help` lists the fields.")

    def parse_config(self, arguments: list[str] | None, over: dict | None = None) -> tuple[Any, ...]:
        """Fill the dataclasses from `[CONFIG] [--field value ...]`; CONFIG: a yaml file, its folder or name.

        Args:
            over: fields that stand over those of the file, and below those of the command line.

        Raises:
            ValueError: for a file that cannot be read, a field that there is not, or a value of the wrong
                type.
        """
        if arguments and not arguments[0].startswith("-"):
            path = find(arguments[0], self.file)
            values = read_yaml(path) | (over or {})
            self._refuse_unknown(values, str(path))
            # Lists and mappings as they are; the rest as if typed before the other arguments, so that
            # argparse checks them all.
            self.set_defaults(
                **{name: value for name, value in values.items() if isinstance(value, list | dict)}
            )
            typed = [
                f"--{name}={value}"
                for name, value in values.items()
                if not isinstance(value, list | dict | None)
            ]
            arguments = [*typed, *arguments[1:]]
        *filled, rest = self.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True, look_for_args_file=False
        )
        if rest:
            if rest[0].startswith("--"):
                self._refuse_unknown([rest[0][2:].split("=")[0]], "the command line")
            raise ValueError(f"{rest[0]!r} on the command line belongs to no field; expected --field value.")
        return tuple(filled)

    def _refuse_unknown(self, names, where: str) -> None:
        known = [action.dest for action in self._actions]
        for name in names:
            if name.replace("-", "_") not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(
                    f"There is no field {name!r} ({where})"
                    + (f"; did you mean {near[0]!r}?" if near else ".")
                )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A yaml file of fields.

    Raises:
        ValueError: if it is missing, or no yaml mapping.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {str(path)!r}; expected a yaml file of fields.")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not yaml: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected a mapping of fields to values.")
    return values


RESERVED = (
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
    "return_tensors",
    "padding",
    "truncation",
    "max_length",
)


def read_template_kwargs(value: dict | str | None) -> dict | None:
    """`--chat_template_kwargs`: a mapping, or its JSON.

    Raises:
        ValueError: for anything else, or an argument of `apply_chat_template` that is no variable of a
            template.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'chat_template_kwargs is {value!r}, which is not JSON ({error}); expected {{"NAME": VALUE}}.'
            ) from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'chat_template_kwargs is {value!r}; expected a mapping, {{"NAME": VALUE}}.')
    if taken := sorted(set(value or {}) & set(RESERVED)):
        raise ValueError(
            f"chat_template_kwargs has {taken[0]!r}, which is no variable of a chat template; expected those "
            "alone."
        )
    return value
