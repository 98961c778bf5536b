"""Lines that a user can paste: how to install an extra, and the next command. Without torch."""

import sys


REPOSITORY = "https://github.com/h2c-hf/h2c_hf"


def install(extra: str) -> str:
    """Return the command that installs the package with one of its extras."""
    return f"pip install 'h2c_hf[{extra}] @ git+{REPOSITORY}'"


def missing(what: str, error: ModuleNotFoundError, extra: str) -> str:
    """Return the sentence about a package that is not installed."""
    return f"{what} needs {error.name}, which is not installed; install it with: {install(extra)}"


def next_commands(*commands: str) -> None:
    """Print the commands that usually follow, to standard error: a redirected report stays a report."""
    sys.stdout.flush()
    print("\nNext:", *commands, sep="\n  ", file=sys.stderr, flush=True)
