"""`h2c lm-eval ...`: lm-eval's own command, with the model "h2c" registered and chosen if none is named.

h2c lm-eval --model_args pretrained=DIR,method=h2c --tasks TASK --apply_chat_template
"""

import json
import sys

from ..config_parser import read_template_kwargs
from ..hints import install


def main(arguments: list[str] | None = None) -> int:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ValueError(
            f"h2c lm-eval needs lm_eval ({error}); install it with: {install('lm-eval')}"
        ) from None
    from . import lm_eval_model  # noqa: F401  registers the model

    sys.argv = ["h2c lm-eval", *with_model(arguments or [])]  # which lm-eval reads
    cli_evaluate()
    return 0


def with_model(arguments: list[str]) -> list[str]:
    """The arguments for `lm-eval`, with `run` and `--model h2c` if they are not given, and
    `--chat_template_kwargs JSON` among the model's arguments."""
    if not arguments or arguments[0] in ("ls", "validate", "-h", "--help"):
        return arguments
    rest = arguments[1:] if arguments[0] == "run" else arguments
    named = any(argument.split("=")[0] in ("--model", "-M") for argument in rest)
    return ["run", *([] if named else ["--model", "h2c"]), *with_template_kwargs(rest)]


def with_template_kwargs(arguments: list[str]) -> list[str]:
    """`--chat_template_kwargs JSON`, which lm-eval does not know, as `--model_args`.

    Raises:
        ValueError: if it is no JSON mapping.
    """
    row = next(
        (row for row, argument in enumerate(arguments) if argument.split("=")[0] == "--chat_template_kwargs"),
        None,
    )
    if row is None:
        return arguments
    _, given, value = arguments[row].partition("=")
    end = row + (1 if given else 2)
    value = read_template_kwargs(value if given else (arguments[row + 1] if end <= len(arguments) else ""))
    return [*arguments[:row], *arguments[end:], "--model_args", json.dumps({"chat_template_kwargs": value})]
