"""`h2c push DIR REPO`: make a bridge's folder a Hub repo that needs only transformers, in one commit."""

import contextlib
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from ..hints import next_commands
from ..modeling import H2CBridgeConfig
from ..modeling.base_models_h2c import is_hub_id
from ..modeling.configuration_h2c import REMOTE_CODE
from ..reports.schema import load_report
from ..visualization.figures import draw
from .licence import follow_licence
from .model_card import write_model_card, written_by_us


# What a repo is made of. No pickles: weights are safetensors or nothing.
SUFFIXES = (".safetensors", ".json", ".py", ".jinja", ".md", ".txt", ".model", ".png")
NAMES = ("LICENSE", "NOTICE")
LEFT_OUT = ("checkpoint-", "_", ".")  # folders and files of a training run
ADVICE = {
    401: "the token is missing or not valid: log in with `hf auth login`, or set HF_TOKEN to a token that "
    "may write",
    403: "the token may not write there: use one with write access to {repo}, or another repo id",
    404: "there is no such repo, or the token may not see it: check the id {repo} and the token",
    413: "a file is too large for the Hub: save the weights in smaller shards",
    429: "too many requests: wait some minutes and run the same command again",
}


def push(
    directory: str | Path,
    repo: str,
    revision: str | None = None,
    private: bool | None = None,
    report: str | Path | None = None,
    license: str | None = None,
    message: str = "Upload bridge",
    token: str | None = None,
    overwrite_card: bool = False,
) -> str:
    """Write the model card into a bridge's folder and upload the folder in one commit, or not at all.

    Args:
        directory: as `save_pretrained` of model and processor wrote it, or `h2c train`.
        repo: "user/name"; made if it is not there.
        revision: a branch, made if it is not there; by default the main one.
        private: of a new repo.
        report: a `report.json` to take into the folder, with the `figures` beside it.
        license: a licence id of the Hub for the card; see `write_model_card`.
        overwrite_card: replace a README.md that was written by hand; by default it is pushed as it is.

    Returns:
        The commit's address.

    Raises:
        ValueError: if the folder is no whole bridge, its licence asks for another name, or the Hub does not
            take its card.
        OSError: if the Hub cannot be reached or refuses, with the next step.
    """
    directory = Path(directory)
    card = prepare(directory, repo, report, license, token, overwrite_card)
    operations = [
        CommitOperationAdd(path.relative_to(directory).as_posix(), path) for path in files_to_push(directory)
    ]
    api = HfApi(token=token)
    with told_of_pushing(repo):
        validate(card)
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        # One commit of ours: `upload_folder` may make several, between which the repo would be half of each.
        return api.create_commit(repo, operations, commit_message=message, revision=revision).commit_url


@contextlib.contextmanager
def told_of_pushing(repo: str, outcome: str = "was not pushed") -> Iterator[None]:
    """Tell an error of the Hub or the connection in one sentence, with the next step.

    Args:
        outcome: of the repo, in the sentence.

    Raises:
        ValueError: for an id that is none.
        OSError: if the Hub cannot be reached or refuses.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no id of a repo: expected 'user/name'; {first_line(error)}") from error
    except LocalTokenNotFoundError as error:
        raise OSError(f"{repo} {outcome}: {ADVICE[401]}.") from error
    except OfflineModeIsEnabled as error:
        raise OSError(f"{repo} {outcome}: HF_HUB_OFFLINE is set, so nothing is sent; unset it.") from error
    except (HTTPError, RuntimeError) as error:
        # `create_commit` wraps what fails in an upload.
        cause = error if isinstance(error, HTTPError) else error.__cause__
        if not isinstance(cause, HTTPError):
            raise
        raise OSError(f"{repo} {outcome}{advice(cause, repo)}.") from error


def make_repo(repo: str, private: bool | None = None, token: str | None = None) -> None:
    """Make a repo that is pushed to later, so that a bad token or no network shows now.

    Raises:
        ValueError, OSError: see `told_of_pushing`.
    """
    with told_of_pushing(repo, "cannot be pushed to"):
        # Of a repo that is there already, a token that is not valid would show in the first push.
        HfApi(token=token).whoami()
        HfApi(token=token).create_repo(repo, private=private, exist_ok=True)


def prepare(
    directory: Path,
    repo: str,
    report: str | Path | None,
    license: str | None,
    token: str | None,
    overwrite_card: bool,
) -> Path:
    """Check a bridge's folder and complete it, with report, licence and card, without asking for the repo.

    Returns:
        The card's path.

    Raises:
        ValueError, OSError: see `push`.
    """
    check_repo(repo)
    config = check_folder(directory)
    if report is not None:
        take_report(Path(report), directory)
    follow_licence(directory, config, repo, license, token)
    card = directory / "README.md"
    if card.exists() and not overwrite_card and not written_by_us(card):
        print("README.md was written by hand and is pushed as it is; --overwrite_card replaces it.")
        return card
    if (directory / "report.json").is_file() and not (directory / "figures" / "accuracy.png").is_file():
        draw(load_report(directory / "report.json"), directory / "figures", names=["accuracy"])
    return write_model_card(directory, config, repo, license)


def check_repo(repo: str) -> None:
    """Refuse an id without owner or with characters that the Hub refuses, before anything is made.

    Raises:
        ValueError: naming the expected value.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no id of a repo: expected 'user/name'; {first_line(error)}") from error
    if repo.count("/") != 1:
        raise ValueError(
            f"{repo!r} names no owner: expected 'user/name', with your name or an organization's on the Hub."
        )


def dry_run(
    directory: Path, repo: str, report: str | None, license: str | None, overwrite_card: bool
) -> None:
    """Print the files that `push` would send, their sizes and the card. The folder stays as it is."""
    check_repo(repo)
    if not directory.is_dir():
        check_folder(directory)
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(
            directory, Path(temporary) / "bridge", ignore=shutil.ignore_patterns("checkpoint-*", "_*", ".git")
        )
        try:
            card = prepare(copy, repo, report, license, None, overwrite_card)
        except (OSError, ValueError) as error:  # with the name of the folder that the user knows
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(str(error).replace(str(copy), str(directory))) from error
        files = files_to_push(copy)
        sizes = [path.stat().st_size for path in files]
        print(f"{len(files)} files, {sum(sizes) / 1e6:,.1f} MB, would go to {repo}:")
        for path, size in zip(files, sizes, strict=True):
            print(f"  {size / 1e3:>12,.1f} kB  {path.relative_to(copy).as_posix()}")
        print(f"\nThe card, README.md:\n\n{card.read_text(encoding='utf-8')}")


def validate(card: Path) -> None:
    """The Hub's own check of a card, before anything is made or sent.

    Raises:
        ValueError: with the Hub's message.
        OSError: if the Hub has no such check: `huggingface_hub` commits no card without it.
    """
    try:
        ModelCard.load(card).validate()
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        raise OSError(
            f"{constants.ENDPOINT} has no /api/validate-yaml, and no card is committed unchecked; expected a "
            "newer Hub."
        ) from error
    except ValueError as error:
        raise ValueError(f"The Hub refuses the model card {card}: {refusal(str(error))}.") from error


def refusal(answer: str) -> str:
    """Return the findings of the check, from its answer."""
    try:
        return "; ".join(error["message"].strip().rstrip(".") for error in json.loads(answer)["errors"])
    except (ValueError, LookupError, TypeError):  # in words
        return " ".join(answer.split()).rstrip(".")


def advice(error: HTTPError, repo: str) -> str:
    """Return the cause of an error of the Hub or the connection, and the next step."""
    if not isinstance(error, HfHubHTTPError):  # of the HTTP library: no connection, or one that was cut
        return (
            f": the connection to the Hub failed ({first_line(error) or type(error).__name__}); what was "
            "there is as it was. Check the network and run the same command again: it goes on with what is "
            "not yet uploaded"
        )
    status = error.response.status_code
    fault = "the Hub has a fault, and what was there is as it was: run the same command again later"
    told = fault if status >= 500 else ADVICE.get(status, first_line(error))
    return f" ({status} from the Hub): {told.format(repo=repo)}"


def check_folder(directory: Path) -> H2CBridgeConfig:
    """The bridge's config.

    Raises:
        ValueError: if something is missing without which the repo would not work.
    """
    if not directory.is_dir():
        raise ValueError(
            f"There is no folder {directory}; expected that of a bridge, as save_pretrained or `h2c train` "
            "writes it."
        )
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"{directory} holds no config.json; expected the folder of a bridge, as save_pretrained or `h2c "
            "train` writes it."
        )
    config = H2CBridgeConfig.from_pretrained(directory)
    if not any(
        (directory / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")
    ):
        raise ValueError(
            f"{directory} holds no model.safetensors; expected the bridge's weights, as safetensors."
        )
    if not (directory / "processor_config.json").is_file():
        raise ValueError(
            f"{directory} holds no processor_config.json; expected both tokenizers: "
            "processor.save_pretrained(DIR)."
        )
    missing = [name for name in REMOTE_CODE if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"{directory} lacks the code {', '.join(missing)}; expected what model.save_pretrained(DIR) "
            "writes."
        )
    for role in ("sharer", "receiver"):
        name = getattr(config, f"{role}_model_id")
        beside = (name or "").startswith("./")
        if beside and not (directory / name / "config.json").is_file():
            raise ValueError(
                f"The config names {name!r} as the {role}, and {directory} holds no such folder with a model "
                "in it."
            )
        if not name or (not beside and not is_hub_id(name)):
            raise ValueError(
                f"The config names {name!r} as the {role}, which nobody else can load; expected a Hub id: "
                f"set {role}_model_id."
            )
        if beside and getattr(config, f"{role}_gguf_file"):
            raise ValueError(
                f"{role}_gguf_file is a file in {name!r}, and GGUF files are not pushed; expected one in a "
                "Hub repo."
            )
    return config


def take_report(report: Path, directory: Path) -> None:
    if report.is_dir():
        report /= "report.json"
    if not report.is_file():
        raise ValueError(
            f"There is no report {report}; expected the report.json of `h2c evaluate` or `h2c quickstart`."
        )
    shutil.copyfile(report, directory / "report.json")
    if (report.parent / "figures").is_dir():
        shutil.copytree(report.parent / "figures", directory / "figures", dirs_exist_ok=True)


def files_to_push(directory: Path) -> list[Path]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    paths = (path for path in files if path.suffix in SUFFIXES or path.name in NAMES)
    kept = [
        path
        for path in paths
        if not any(part.startswith(LEFT_OUT) for part in path.relative_to(directory).parts)
    ]
    return kept + sorted(directory.glob(".eval_results/*.yaml"))


def first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "")


def main(arguments: list[str] | None = None) -> int:
    """`h2c push`."""
    from .parsers import push as parser

    options = vars(parser().parse_args(arguments))
    if options.pop("dry_run"):
        dry_run(
            Path(options["directory"]),
            options["repo"],
            options["report"],
            options["license"],
            options["overwrite_card"],
        )
        rest = [argument for argument in arguments or [] if argument != "--dry_run"]
        next_commands(" ".join(["h2c push", *map(shlex.quote, rest)]))
        return 0
    print(f"Pushed to {push(**options)}")
    next_commands(f"h2c chat {options['repo']}")
    return 0
