"""`h2c demo [REPO]`: a page in which Receiver, text-to-text and H2C answer side by side, and a look into the bridge."""

import argparse

import torch
from transformers import AutoModelForCausalLM

from .atlas import MODELS
from .data.tokenizers import load_tokenizer
from .evaluation.arguments import EvaluationArguments
from .evaluation.evaluate import load
from .modeling import H2CForCausalLM, H2CProcessor
from .training.pair import QUANTIZATION


def opened(repo: str | None, revision: str | None = None, sharer_quantization: str = "none") -> tuple[H2CForCausalLM, H2CProcessor]:
    """A bridge's models and processor, on the GPU where there is one; without a repo the pair and the bridge in the package, in fp32.

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
        return load(EvaluationArguments(model=repo, revision=revision, sharer_quantization=sharer_quantization), device)[:2]
    except OSError as error:  # transformers' goes on for several lines
        message = " ".join(str(error).split())
        raise OSError(f"{repo} was not loaded; expected the folder of a bridge, or a Hub id. {message}") from error


def main(arguments: list[str] | None = None) -> int:
    """`h2c demo`."""
    parser = argparse.ArgumentParser(prog="h2c demo", description=__doc__)
    parser.add_argument("repo", nargs="?", metavar="REPO", help="the bridge: a folder or a Hub id (default: Atlas, in the package)")
    parser.add_argument("--revision", help="commit of the bridge's repo")
    parser.add_argument("--sharer_quantization", choices=("none", *QUANTIZATION), default="none", help="of REPO's Sharer (bitsandbytes)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(arguments)
    try:
        from . import demo_page
    except ImportError as error:
        raise ValueError(f"h2c demo needs gradio ({error}); install it with: pip install 'h2c_hf[demo]'.") from None

    model, processor = opened(options.repo, options.revision, options.sharer_quantization)
    demo_page.serve(demo_page.Demo(model, processor, options.repo), options.port)
    return 0
