"""`h2c demo [REPO]`: a page in which Receiver, text-to-text and H2C answer side by side, and a look into the bridge."""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .atlas import MODELS
from .evaluation.arguments import EvaluationArguments
from .evaluation.evaluate import load
from .modeling import H2CForCausalLM, H2CProcessor
from .training.pair import QUANTIZATION


def atlas(device: torch.device) -> tuple[H2CForCausalLM, H2CProcessor]:
    """The pair and the bridge that ship in the package, in fp32."""
    models = {role: AutoModelForCausalLM.from_pretrained(MODELS / role, dtype=torch.float32).to(device) for role in ("sharer", "receiver")}
    model = H2CForCausalLM.from_pretrained(MODELS / "bridge", **models).eval()
    return model, H2CProcessor(*(AutoTokenizer.from_pretrained(MODELS / role) for role in models))


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

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.repo is None:
        model, processor = atlas(device)
    else:
        named = EvaluationArguments(model=options.repo, revision=options.revision, sharer_quantization=options.sharer_quantization)
        model, processor, _ = load(named, device)
    demo_page.serve(demo_page.Demo(model, processor, options.repo), options.port)
    return 0
