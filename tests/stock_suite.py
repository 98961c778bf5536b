"""transformers' own tests of any model (`ModelTesterMixin`), run against the composite.

    python tests/stock_suite.py rewrite     # or message: the bridge's form

They are in the sdist of transformers, not in its wheel: `fetch` gets it from the package index. The sdist
lacks the mixins in subpackages of its tests (`GenerationTesterMixin`, `ExportTesterMixin`); a folder with
them, `tests/` of a checkout, can be named by `TRANSFORMERS_TESTS`.
"""

import functools
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
import warnings
from pathlib import Path

import torch
import transformers
from pairs import join, tiny_model

from h2c_hf.modeling import H2CBridgeConfig, H2CForCausalLM


# Modules of transformers' tests that its sdist lacks, with the class that test_modeling_common.py inherits or
# looks for.
ABSENT = {"generation.test_utils": "GenerationTesterMixin", "exporters.test_export": "ExportTesterMixin"}
PACKAGE = "transformers_tests"


def fetch(folder: Path) -> Path:
    """Return the folder of transformers' tests, of the installed version."""
    if named := os.environ.get("TRANSFORMERS_TESTS"):
        return Path(named)
    version = f"transformers=={transformers.__version__}"
    # Its version is in its name: nothing is built.
    command = [
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "transformers",
        "--no-build-isolation",
        "--dest",
        folder,
        version,
    ]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "tests"


def mixins(tests: Path) -> list[type]:
    """Import the mixins from transformers' tests under another name than that of this folder."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(tests)]
    sys.modules[PACKAGE] = package
    found = []
    for name, mixin in ABSENT.items():
        if (tests / f"{name.replace('.', '/')}.py").exists():
            found.append(getattr(importlib.import_module(f"{PACKAGE}.{name}"), mixin))
        else:
            module = types.ModuleType(f"{PACKAGE}.{name}")
            setattr(module, mixin, type(mixin, (), {}))
            sys.modules[f"{PACKAGE}.{name}"] = module
    return [importlib.import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin, *found]


def base_models(config: H2CBridgeConfig, dtype: torch.dtype | None = None) -> list:
    """Make the Sharer and the Receiver, always the same, with the given attention and dtype."""
    # The bridge's weights are then the first to be drawn, as those of a model are.
    with torch.random.fork_rng():
        # In fp16, larger weights are beyond the tests' tolerances.
        sizes = {"num_hidden_layers": 2, "initializer_range": 0.05}
        models = tiny_model("llama", 1, **sizes), tiny_model("qwen2", 2, **sizes)
    for model in models:
        if config._attn_implementation is not None:
            model.set_attn_implementation(config._attn_implementation)
    return [model.to(dtype) for model in models]


class Composite(H2CForCausalLM):
    """The composite as transformers' tests make and call models: from a config alone, and with one prompt,
    which both models read."""

    def __init__(self, config: H2CBridgeConfig, sharer=None, receiver=None, bridge=None):
        models = base_models(config) if sharer is None else [sharer, receiver]
        super().__init__(config, *models, bridge)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Load a bridge for the base models that `__init__` makes; its config names none."""
        config = H2CBridgeConfig.from_pretrained(pretrained_model_name_or_path) if config is None else config
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        models = base_models(config, dtype if isinstance(dtype, torch.dtype) else None)
        return super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            config=config,
            sharer=models[0],
            receiver=models[1],
            **kwargs,
        )

    @functools.wraps(H2CForCausalLM.forward)  # tests look at the names of its arguments
    def forward(
        self, input_ids=None, attention_mask=None, sharer_input_ids=None, sharer_attention_mask=None, **kwargs
    ):
        if sharer_input_ids is None:
            sharer_input_ids, sharer_attention_mask = input_ids, attention_mask
        return super().forward(input_ids, attention_mask, sharer_input_ids, sharer_attention_mask, **kwargs)


class Tester:
    """What transformers' tests ask about a model: sizes, a config and inputs."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 3, 7, 32, 2, 4
    is_training = True

    def __init__(self, form: str):
        self.form = form

    def get_config(self) -> H2CBridgeConfig:
        """Return a config of which no model was made yet."""
        models = tiny_model("llama", 1, num_hidden_layers=2), tiny_model("qwen2", 2, num_hidden_layers=2)
        return H2CBridgeConfig(**join(*models, bridge_form=self.form, dropout=0.0).config.to_dict())

    def prepare_config_and_inputs_for_common(self) -> tuple[H2CBridgeConfig, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1, 61, (2, self.batch_size, self.seq_length), generator=generator)
        mask = torch.ones_like(ids[0])
        inputs = {
            "input_ids": ids[0],
            "attention_mask": mask,
            "sharer_input_ids": ids[1],
            "sharer_attention_mask": mask.clone(),
        }
        return self.get_config(), inputs


# Tests that cannot apply to the composite, by the beginning of their names or a part that begins with "_",
# and why.
CANNOT_APPLY = {
    "_pad_right": "expects right padding to be read; it is refused",
    "test_attention_outputs": "expects attention over the whole prompt; forward computes the kickstart on "
    "the bridged cache",
    "test_hidden_states_output": "expects hidden states of the whole prompt; forward computes those of the "
    "kickstart",
    "test_retain_grad_hidden_states_attentions": "expects a gradient for the embeddings of the prompt, which "
    "are frozen",
    "test_correct_missing_keys": "expects weights outside the bridge to be missing; they come from the base "
    "models' own repos",
    "test_model_weights_reload_no_missing_tied_weights": "expects a file without the weights to load; a "
    "bridge without weights is refused",
    "test_generation_tester_mixin_inheritance": "expects GenerationTesterMixin, which the sdist lacks",
    "test_gradient_checkpointing_enable_disable": "expects stock checkpointing in every submodule, which "
    "drops the bridged cache",
    "test_training_gradient_checkpointing": "expects stock checkpointing of the first layer, the Sharer's, "
    "which has no backward pass",
    "test_bc_cache_name_forward": "expects a warning for past_key_values; both names serve, as in "
    "transformers before 5.24",
    "test_peft_gradient_checkpointing_enable_disable": "expects stock checkpointing in every submodule, "
    "which drops the bridged cache",
    "test_init_weights_can_init_buffers": "expects init_weights to initialise the base models, which come "
    "with their weights",
    "test_resize_embeddings_untied": "expects other embeddings; the Receiver is not saved with the bridge, "
    "so its size is fixed",
    "test_resize_tokens_embeddings": "expects other embeddings; the Receiver is not saved with the bridge, "
    "so its size is fixed",
    "test_tied_weights_keys": "expects the bridge's config to tie the base models' embeddings, which their "
    "own configs do",
}


def case(mixin_classes: list[type], form: str) -> type[unittest.TestCase]:
    """Return transformers' test case for a composite of a bridge form, without tests that cannot apply."""

    class CompositeTest(*mixin_classes, unittest.TestCase):
        all_model_classes = (Composite,)

        def setUp(self):
            self.model_tester = Tester(form)

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = {
                name: value.clone() if isinstance(value, torch.Tensor) else value
                for name, value in inputs_dict.items()
            }
            if return_labels:  # the last three columns are the target
                inputs["labels"] = inputs["input_ids"].clone()
                inputs["labels"][:, :-3] = -100
            return inputs

    for name in dir(CompositeTest):
        if any(name.startswith(key) or (key.startswith("_") and key in name) for key in CANNOT_APPLY):
            setattr(CompositeTest, name, None)
    return CompositeTest


def run(test_case: type[unittest.TestCase]) -> tuple[list[str], dict[str, str]]:
    """Run all tests; return the names that pass, and the last line of the error of each that fails."""
    passed, failed = [], {}
    for name in unittest.TestLoader().getTestCaseNames(test_case):
        result = unittest.TestResult()
        test_case(name).run(result)
        if problems := result.errors + result.failures:
            failed[name] = problems[0][1].strip().splitlines()[-1]
        elif not result.skipped:
            passed.append(name)
    return passed, failed


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary_folder:
        passed, failed = run(case(mixins(fetch(Path(temporary_folder))), sys.argv[1]))
    print(
        "\n".join(
            [
                f"{len(passed)} pass, {len(failed)} fail.",
                *(f"{name}: {error}" for name, error in failed.items()),
            ]
        )
    )
    sys.exit(bool(failed))
