"""Follow the licences of the base models when a bridge that was trained with them is distributed.

Llama Community License, section 1.b: the repo's name begins with "Llama", the agreement lies in the repo as
`LICENSE` and the attribution in `NOTICE`; the card says "Built with Llama".

Gemma Terms of Use, sections 3.1, 3.2 and 4.2: the agreement lies in the repo as `GEMMA_TERMS.md` and its
notice in `NOTICE`; notice and card pass on the use restrictions; the repo's name suggests no endorsement by
Google.
"""

import contextlib
import re
import shutil
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError

from ..modeling import H2CBridgeConfig


# The versions whose licences are ids on the Hub, as "llama3.1". "TinyLlama-1.1B" is none, and "llama-30b"
# tells no version.
VERSION = re.compile(r"llama-?(2|3\.[123]|3|4)(?![\d.b])", re.IGNORECASE)
AGREEMENTS = ("LICENSE", "LICENSE.txt")  # its names in Meta's repos

# The models in the appendix of the Gemma Terms of Use. Gemma 4 and MedGemma have other licences.
GEMMA = re.compile(
    r"(?<![a-z])(function|embedding|pali|shield|code|data|recurrent|t5|vault|translate)?gemma(?!-?4(?!b))[^/]*$",
    re.IGNORECASE,
)
GEMMA_TERMS = Path(__file__).with_name("gemma_terms.md")  # of March 24, 2025
# Word for word.
GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
)
GEMMA_RESTRICTIONS = (
    "You must not use it for the restricted uses in the Gemma Prohibited Use Policy at "
    "ai.google.dev/gemma/prohibited_use_policy, or in violation of applicable laws and regulations (section "
    "3.2 of the Gemma Terms of Use). Whoever distributes it passes these restrictions on, with a copy of the "
    "terms."
)
ENDORSED = re.compile(r"(?<![a-z])(google|deepmind|official)(?![a-z])", re.IGNORECASE)


def llama_id(config: H2CBridgeConfig) -> str | None:
    """The id of the Llama in the pair; the Sharer's if both are."""
    return next(
        (
            model
            for model in (config.sharer_model_id, config.receiver_model_id)
            if VERSION.search(model or "")
        ),
        None,
    )


def llama_version(config: H2CBridgeConfig, license: str | None = None) -> str | None:
    """The version, as "3.1", of the Llama whose licence holds, if an id of the pair or `license` tells it."""
    match = VERSION.search(llama_id(config) or "") or VERSION.fullmatch(license or "")
    return match and match[1]


def has_gemma(config: H2CBridgeConfig, license: str | None = None) -> bool:
    """Return whether the Gemma Terms of Use hold: if the pair has a Gemma, or `license` is "gemma"."""
    return license == "gemma" or any(
        GEMMA.search(model or "") for model in (config.sharer_model_id, config.receiver_model_id)
    )


def write_gemma_terms(directory: Path, what: str) -> str:
    """Put a copy of the Gemma Terms of Use into a folder.

    Args:
        what: the work that the restrictions hold for, as "This bridge".

    Returns:
        The text for the folder's `NOTICE`.
    """
    shutil.copyfile(GEMMA_TERMS, directory / "GEMMA_TERMS.md")
    return (
        f"{GEMMA_NOTICE}\n\n{what} is subject to these terms, of which GEMMA_TERMS.md is a copy. "
        f"{GEMMA_RESTRICTIONS}"
    )


def product(version: str) -> str:
    """How the licence of that version calls the model."""
    return "Meta Llama 3" if version == "3" else f"Llama {version}"


def attribution(version: str) -> str:
    """The notice that is retained in all copies."""
    agreement = "LLAMA 2" if version == "2" else product(version)
    return (
        f"{product(version)} is licensed under the {agreement} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
    )


def built_with(version: str) -> str:
    """Return the notice that the card displays."""
    return f"Built with {'Meta Llama 3' if version == '3' else 'Llama'}"


def name_begins(version: str) -> str:
    """Return the beginning that the licence asks of the name of a model that was trained with one."""
    return {"2": "", "3": "Llama 3"}.get(version, "Llama")


def follows_in_name(name: str, version: str) -> bool:
    return re.sub(r"[-_.]", " ", name).lower().startswith(name_begins(version).lower())


def follow_licence(
    directory: Path,
    config: H2CBridgeConfig,
    repo: str,
    license: str | None = None,
    token: str | bool | None = None,
) -> None:
    """Check the repo's name and put `NOTICE`, and `LICENSE` or `GEMMA_TERMS.md`, into a bridge's folder. Do
    nothing for a pair without a Llama or a Gemma.

    Raises:
        ValueError: for a name that a licence forbids.
        OSError: if the agreement is not in the folder, and cannot be fetched from the Llama's own repo.
    """
    version, gemma = llama_version(config, license), has_gemma(config, license)
    owner, _, name = repo.rpartition("/")
    if gemma and (word := ENDORSED.search(name)):
        raise ValueError(
            f"The Gemma Terms of Use forbid to suggest an endorsement by Google; got {repo!r}, expected a "
            f"name without {word[0]!r}."
        )
    if version is not None and not follows_in_name(name, version):
        begin = name_begins(version)
        better = f"{owner}/{begin.replace(' ', '-')}-{name}".lstrip("/")
        raise ValueError(
            f"The licence of {product(version)} asks that the name of a model trained with it begin with "
            f"{begin!r}; got {repo!r}, expected for instance {better!r}."
        )
    notices = [attribution(version)] if version is not None else []
    if gemma:
        notices.append(write_gemma_terms(directory, "This bridge"))
    if notices:
        (directory / "NOTICE").write_text("\n\n".join(notices) + "\n", encoding="utf-8")
    if version is not None and not (directory / "LICENSE").is_file():
        agreement = fetch_agreement(llama_id(config), token)
        if agreement is None:
            raise OSError(
                f"The licence of {product(version)} asks for a copy of the agreement beside the bridge, and "
                f"it could not be fetched from {llama_id(config) or 'the Hub'}; expected it as "
                f"{directory / 'LICENSE'}."
            )
        shutil.copyfile(agreement, directory / "LICENSE")


def fetch_agreement(model: str | None, token: str | bool | None) -> str | None:
    """The agreement that lies in the Llama's own repo, as a file of the cache."""
    for name in AGREEMENTS if model else ():
        with contextlib.suppress(HTTPError, OSError):  # another name, no access, no connection
            return hf_hub_download(model, name, token=token)
