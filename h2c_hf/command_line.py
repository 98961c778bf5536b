"""The common parts of all commands' argument parsers. Without torch and transformers, whose import takes
seconds: `--help` is quick."""

import argparse
import dataclasses
import difflib
import textwrap
import types
import typing
from collections.abc import Callable
from typing import Any


TEMPLATE_HELP = (
    "variables of the two chat templates, as JSON: '{\"enable_thinking\": false}' leaves out Qwen3's "
    "thinking block"
)


def HfArg(*, help: str, default: Any = dataclasses.MISSING, default_factory: Callable = dataclasses.MISSING):  # noqa: N802
    """Declare a field as `transformers.hf_argparser.HfArg` does, without importing transformers."""
    metadata = {"help": help}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def add_fields(parser: argparse.ArgumentParser, dataclass: type) -> None:
    """Add a dataclass's fields to a parser, for help and completion. `ConfigParser` parses the values."""
    for field in dataclasses.fields(dataclass):
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        choices = typing.get_args(field.type) if typing.get_origin(field.type) is typing.Literal else None
        text = field.metadata["help"].replace("%", "%%")
        if default not in (None, []):
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            text += f" (default: {shown})".replace("%", "%%")
        parser.add_argument(
            f"--{field.name}", help=text, choices=choices, metavar=None if choices else type_name(field.type),
            nargs="+" if typing.get_origin(field.type) is list else "?" if field.type is bool else None,
        )  # fmt: skip


def type_name(annotation: Any) -> str:
    """Return the word for a value of this type: TEXT, NUMBER, INTEGER or BOOL."""
    if isinstance(annotation, types.UnionType):
        annotation = next(option for option in typing.get_args(annotation) if option is not type(None))
    annotation = (*typing.get_args(annotation), annotation)[0]
    return {int: "INTEGER", float: "NUMBER", bool: "BOOL"}.get(annotation, "TEXT")


class Formatter(argparse.HelpFormatter):
    """Help with paragraphs in description and epilog, and room for long names."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, max_help_position=34, **kwargs)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [
            part if part.startswith(" ") else textwrap.fill(part, width) for part in text.split("\n\n")
        ]
        return textwrap.indent("\n\n".join(paragraphs), indent)


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` that tells a mistake in one sentence, with the nearest option and `--help`."""

    def __init__(self, prog: str, description: str, **kwargs):
        kwargs.setdefault("formatter_class", Formatter)
        super().__init__(prog=prog, description=description, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise ValueError(f"{message}. `{self.prog} --help` lists what it takes.")

    def parse_args(self, args=None, namespace=None):
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(rest[0].split("=")[0], known, n=1)
            self.error(f"{rest[0]!r} is not expected here" + (f"; did you mean {near[0]}" if near else ""))
        return options
