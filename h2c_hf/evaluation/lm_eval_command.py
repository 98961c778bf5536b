"""`h2c lm-eval ...`: lm-eval's own command, with the model "h2c" registered and, where none is named, chosen.

h2c lm-eval --model_args pretrained=DIR,method=h2c --tasks TASK --apply_chat_template
"""

import sys

from ..hints import install


def main(arguments: list[str] | None = None) -> int:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ValueError(f"h2c lm-eval needs lm_eval ({error}); install it with: {install('lm-eval')}") from None
    from . import lm_eval_model  # noqa: F401  registers the model

    sys.argv = ["h2c lm-eval", *with_model(arguments or [])]  # which lm-eval reads
    cli_evaluate()
    return 0


def with_model(arguments: list[str]) -> list[str]:
    """The arguments for `lm-eval`, with `run` and `--model h2c` where they are not given."""
    if not arguments or arguments[0] in ("ls", "validate", "-h", "--help"):
        return arguments
    rest = arguments[1:] if arguments[0] == "run" else arguments
    named = any(argument.split("=")[0] in ("--model", "-M") for argument in rest)
    return ["run", *([] if named else ["--model", "h2c"]), *rest]
