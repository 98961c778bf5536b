"""`h2c demo [REPO]`: a page in which Receiver, text-to-text and H2C answer side by side, and a look into the bridge."""

import argparse

import torch
from transformers import AutoModelForCausalLM

from .atlas import MODELS
from .data.tokenizers import load_tokenizer
from .loading import QUANTIZATION, ROLES, load_bridge
from .modeling import H2CForCausalLM, H2CProcessor


def opened(repo: str | None, revision: str | None = None, **options) -> tuple[H2CForCausalLM, H2CProcessor]:
    """A bridge's models and processor, on the GPU where there is one; without a repo the pair and the bridge in the package, in fp32.

    Args:
        options: of `load_bridge`.

    Raises:
        OSError: where there is no such repo or folder, in one sentence.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if repo is None:
        models = {
            role: AutoModelForCausalLM.from_pretrained(MODELS / role, dtype=torch.float32).to(device) for role in ("sharer", "receiver")
        }
        model = H2CForCausalLM.from_pretrained(MODELS / "bridge", **models).eval()
        return model, H2CProcessor(*(load_tokenizer(MODELS / role) for role in models))
    try:
        return load_bridge(repo, revision, dtype="auto", device_map={"": device}, **options)
    except OSError as error:  # transformers' goes on for several lines
        message = " ".join(str(error).split())
        raise OSError(f"{repo} was not loaded; expected the folder of a bridge, or a Hub id. {message}") from error


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `load_bridge` that a person may need to load REPO."""
    parser.add_argument("--revision", help="commit of the bridge's repo")
    for role in ROLES:
        name = role.capitalize()
        parser.add_argument(f"--{role}", metavar="MODEL", help=f"a {name} instead of the one that REPO names: Hub id, folder, GGUF file")
        parser.add_argument(f"--{role}_chat_template", metavar="FILE", help=f"Jinja file, or 'plain', instead of the {name}'s own template")
    parser.add_argument("--sharer_quantization", choices=("none", *QUANTIZATION), default="none", help="of REPO's Sharer (bitsandbytes)")


def pair_options(options: argparse.Namespace) -> dict:
    """Return what `add_pair_options` added, as `opened` takes it."""
    names = ["revision", "sharer_quantization", *(f"{role}{name}" for role in ROLES for name in ("", "_chat_template"))]
    return {name: getattr(options, name) for name in names}


def main(arguments: list[str] | None = None) -> int:
    """`h2c demo`."""
    parser = argparse.ArgumentParser(prog="h2c demo", description=__doc__)
    parser.add_argument("repo", nargs="?", metavar="REPO", help="the bridge: a folder or a Hub id (default: Atlas, in the package)")
    add_pair_options(parser)
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(arguments)
    try:
        from . import demo_page
    except ImportError as error:
        raise ValueError(f"h2c demo needs gradio ({error}); install it with: pip install 'h2c_hf[demo]'.") from None

    model, processor = opened(options.repo, **pair_options(options))
    demo_page.serve(demo_page.Demo(model, processor, options.repo), options.port)
    return 0
