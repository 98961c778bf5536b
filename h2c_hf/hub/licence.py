"""What a Llama's licence asks of a bridge that was trained with one, before it is handed on: section 1.b of the Llama Community
License. The name begins with "Llama", the agreement lies in the repo as `LICENSE` and the attribution as `NOTICE`; the card says
"Built with Llama".
"""

import contextlib
import re
import shutil
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError

from ..modeling import H2CBridgeConfig


# The versions whose licences are ids on the Hub, as "llama3.1". "TinyLlama-1.1B" is none, and "llama-30b" tells no version.
VERSION = re.compile(r"llama-?(2|3\.[123]|3|4)(?![\d.b])", re.IGNORECASE)
AGREEMENTS = ("LICENSE", "LICENSE.txt")  # its names in Meta's repos


def llama_id(config: H2CBridgeConfig) -> str | None:
    """The id of the Llama in the pair; the Sharer's where both are."""
    return next((model for model in (config.sharer_model_id, config.receiver_model_id) if VERSION.search(model or "")), None)


def llama_version(config: H2CBridgeConfig, license: str | None = None) -> str | None:
    """The version, as "3.1", of the Llama whose licence holds for the bridge: where an id of the pair tells it, or `license` is one."""
    match = VERSION.search(llama_id(config) or "") or VERSION.fullmatch(license or "")
    return match and match[1]


def product(version: str) -> str:
    """How the licence of that version calls the model."""
    return "Meta Llama 3" if version == "3" else f"Llama {version}"


def attribution(version: str) -> str:
    """The notice that is retained in all copies."""
    agreement = "LLAMA 2" if version == "2" else product(version)
    return f"{product(version)} is licensed under the {agreement} Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."


def built_with(version: str) -> str:
    """What is displayed on the card."""
    return f"Built with {'Meta Llama 3' if version == '3' else 'Llama'}"


def name_begins(version: str) -> str:
    """What the name of a model that was trained with one has to begin with."""
    return {"2": "", "3": "Llama 3"}.get(version, "Llama")


def follows_in_name(name: str, version: str) -> bool:
    return re.sub(r"[-_.]", " ", name).lower().startswith(name_begins(version).lower())


def follow_licence(
    directory: Path, config: H2CBridgeConfig, repo: str, license: str | None = None, token: str | bool | None = None
) -> None:
    """Check the repo's name and put `NOTICE` and `LICENSE` into a bridge's folder. Nothing where the pair holds no Llama.

    Raises:
        ValueError: for a name that does not begin as the licence asks.
        OSError: where the agreement is not in the folder, and cannot be fetched from the Llama's own repo.
    """
    version = llama_version(config, license)
    if version is None:
        return
    owner, _, name = repo.rpartition("/")
    if not follows_in_name(name, version):
        begin = name_begins(version)
        better = f"{owner}/{begin.replace(' ', '-')}-{name}".lstrip("/")
        raise ValueError(
            f"The licence of {product(version)} asks that the name of a model trained with it begin with {begin!r}; "
            f"got {repo!r}, expected for instance {better!r}."
        )
    (directory / "NOTICE").write_text(attribution(version) + "\n", encoding="utf-8")
    if not (directory / "LICENSE").is_file():
        agreement = fetch_agreement(llama_id(config), token)
        if agreement is None:
            raise OSError(
                f"The licence of {product(version)} asks for a copy of the agreement beside the bridge, and it could not be fetched from "
                f"{llama_id(config) or 'the Hub'}; expected it as {directory / 'LICENSE'}."
            )
        shutil.copyfile(agreement, directory / "LICENSE")


def fetch_agreement(model: str | None, token: str | bool | None) -> str | None:
    """The agreement that lies in the Llama's own repo, as a file of the cache."""
    for name in AGREEMENTS if model else ():
        with contextlib.suppress(HTTPError, OSError):  # another name, no access, no connection
            return hf_hub_download(model, name, token=token)
