"""Errors of loading models, told with the model's name and the next step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming(role: str, name: str) -> Iterator[None]:
    """Turn the errors of loading a model into one sentence that names it and the next step.

    Args:
        role: "Sharer", "Receiver" or "bridge".
        name: the Hub id or folder that was asked for.

    Raises:
        OSError: instead of any OSError of transformers or huggingface_hub, which go on for several lines.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"The {role} {name!r} was not loaded: {reason(error, str(name))}") from error


def reason(error: OSError, name: str) -> str:
    """Return why a model could not be loaded, and the next step."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if os.path.isdir(name):
        return " ".join(str(error).split())
    causes = chain(error)
    text = " ".join(str(cause) for cause in causes)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f"its owners gate it. Accept their terms at {constants.ENDPOINT}/{name}, then log in with "
            "`hf auth login`."
        )
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return "there is no such revision. Expected a commit, branch or tag of its repo."
    if name.startswith(("/", "./", "../", "~")) or name.count("/") != 1:
        return "there is no such folder. Expected a folder with a config.json, or a Hub id as 'user/name'."
    if constants.HF_HUB_OFFLINE:
        return (
            "it is not in the cache, and HF_HUB_OFFLINE is set. "
            f"Run `HF_HUB_OFFLINE=0 hf download {name}` once, or give a folder."
        )
    if (
        any(isinstance(cause, RepositoryNotFoundError) for cause in causes)
        or "not a valid model identifier" in text
    ):
        return (
            "there is no such model on the Hub, or the token may not see it. Check the id; for a private one "
            "run `hf auth login`."
        )
    if "connect" in text.lower():
        return (
            f"it is not in the cache, and {constants.ENDPOINT} cannot be reached. Check the network, or give "
            "a folder."
        )
    return " ".join(str(error).split())


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and the errors that caused it."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
