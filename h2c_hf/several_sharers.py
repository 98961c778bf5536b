"""Several Sharers into one Receiver, each through a bridge of its own.

No part of what travels to the Hub: no Auto class leads here, and each bridge is saved as the ordinary repo that it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from .modeling import H2CForCausalLM
from .modeling.configuration_h2c import HUB_ARGUMENTS
from .modeling.inputs_h2c import check_prompt, target_start


COMBINE = ("sum", "chain")
SETTINGS = "several_sharers.json"


class H2CSeveralSharers(nn.Module):
    """Models that share one Receiver, answering as one. A Sharer that a call gives no inputs for is switched off in that call; with
    none the Receiver answers alone.

    Its parameters, its state dict and so a Trainer's checkpoints are those of the bridges. Inputs of a Sharer are a dict with
    `sharer_input_ids` and `sharer_attention_mask`, or `sharer_hidden_states`, as in `H2CForCausalLM.bridged_cache`; what an
    `H2CProcessor` returns can be given whole, since other names in it are not read.
    """

    def __init__(self, models: Mapping[str, H2CForCausalLM], combine: str = "sum"):
        """
        Args:
            models: by a name for each Sharer. The bridge of each is the one that is active now.
            combine: "sum": what each bridge adds to the Receiver's own keys and values, added up. "chain": each bridge rewrites what
                those before it wrote, in the order of `models`.

        Raises:
            ValueError: for no model, two Receivers, or a name that can be no folder's.
        """
        super().__init__()
        if not models:
            raise ValueError("There are no models: got 0, expected at least 1.")
        if combine not in COMBINE:
            raise ValueError(f"combine is {combine!r}; expected {' or '.join(map(repr, COMBINE))}.")
        first = next(iter(models))
        for name, model in models.items():
            if not name.isidentifier():
                raise ValueError(f"A Sharer is named {name!r}; expected letters, digits and underscores: it becomes a folder.")
            if model.receiver is not models[first].receiver:
                raise ValueError(
                    f"{name!r} and {first!r} hold a Receiver each; expected one and the same object: give the second "
                    f"H2CForCausalLM.from_pretrained or from_pair receiver=first.receiver."
                )
        # Of the module tree are the bridges alone; the frozen models are held beside it.
        self.bridges = nn.ModuleDict({name: model.bridge for name, model in models.items()})
        self.models, self.combine = dict(models), combine
        self.train(any(model.training for model in models.values()))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, sharers: Mapping | None = None, receiver=None, **kwargs) -> "H2CSeveralSharers":
        """Load what `save_pretrained` wrote, and the base models, the Receiver once.

        Args:
            pretrained_model_name_or_path: a folder or repo.
            sharers: by name, a model, id or folder to use instead of the one that the bridge's config names.
            receiver: likewise.
            kwargs: as for `H2CForCausalLM.from_pretrained`, for each of them.
        """
        where = {name: kwargs[name] for name in ("revision", *HUB_ARGUMENTS) if name in kwargs}
        settings = json.loads(Path(cached_file(pretrained_model_name_or_path, SETTINGS, **where)).read_text())
        if unknown := sorted({*(sharers or {})} - {*settings["sharers"]}):
            raise ValueError(f"There is no Sharer {unknown[0]!r} here; expected one of {', '.join(settings['sharers'])}.")
        models = {}
        for name in settings["sharers"]:
            given = {"sharer": (sharers or {}).get(name), "receiver": receiver}
            models[name] = H2CForCausalLM.from_pretrained(pretrained_model_name_or_path, subfolder=name, **given, **kwargs)
            receiver = models[name].receiver
        return cls(models, settings["combine"])

    def save_pretrained(self, save_directory) -> None:
        """Write each bridge into a subfolder of its name, as `H2CForCausalLM.save_pretrained` does."""
        for name, model in self.models.items():
            model.save_pretrained(Path(save_directory) / name)
        settings = {"combine": self.combine, "sharers": list(self.models)}
        (Path(save_directory) / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    @property
    def _any(self) -> H2CForCausalLM:
        """For what the Receiver does alone."""
        return next(iter(self.models.values()))

    def _apply(self, fn, recurse: bool = True):
        """`to`, `cuda` and their like: of the frozen models too, each once."""
        for base in {id(base): base for model in self.models.values() for base in model._frozen()}.values():
            base._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def bridged_cache(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharers: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> Cache:
        """The cache from which the Receiver answers; empty where no Sharer is on, as that of `H2CForCausalLM.bridged_cache`.

        Args:
            input_ids, attention_mask: (batch, N), the Receiver's prompt, left-padded. It is prefilled once.
            sharers: inputs by name.

        Raises:
            ValueError: for a name that is unknown, a bridge that was swapped for another one, and what a single model refuses.
        """
        sharers = sharers or {}
        for name in sharers:
            if name not in self.models:
                raise ValueError(f"There is no Sharer {name!r}; expected one of {', '.join(self.models)}.")
            if self.models[name].bridge is not self.bridges[name]:
                raise ValueError(f"The bridge of {name!r} was swapped for another one; expected the one that was active at the start.")
        on = [name for name, model in self.models.items() if name in sharers and not model._bridge_disabled]
        check_prompt("", input_ids, attention_mask, self._any.receiver, least=2 if on else 1, bridged=bool(on))
        if not on:
            return DynamicCache(config=self._any.receiver.config)
        own, combined = self._any.prefill(input_ids, attention_mask), None
        for name in on:
            inputs = {key: value for key, value in sharers[name].items() if key.startswith("sharer_")}
            before = own if combined is None or self.combine == "sum" else combined
            bridged = self.models[name].bridged_cache(input_ids, attention_mask, **inputs, receiver_cache=before)
            if combined is None or self.combine == "chain":
                combined = bridged
            else:
                add_change(combined, own, bridged)
        return combined

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharers: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As `H2CForCausalLM.forward`, which says what the arguments and `kwargs` are; `sharers` as in `bridged_cache`."""
        start = None if labels is None else target_start(labels, input_ids)
        mask = None if attention_mask is None else attention_mask[:, :start]
        cache = self.bridged_cache(input_ids[:, :start], mask, sharers)
        return self._any(input_ids, attention_mask, labels=labels, past_key_values=cache, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharers: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        **kwargs,
    ):
        """As `H2CForCausalLM.generate`, on a dynamic cache; `sharers` as in `bridged_cache`."""
        cache = self.bridged_cache(input_ids, attention_mask, sharers)
        return self._any.generate(input_ids, attention_mask, past_key_values=cache, **kwargs)


def add_change(combined: Cache, own: Cache, bridged: Cache) -> None:
    """Add to `combined`, in place, what the bridge that wrote `bridged` added to `own`. Layers that it left alone stay the same."""
    for layer, before, after in zip(combined.layers, own.layers, bridged.layers, strict=True):
        if after.keys is not before.keys:
            layer.keys, layer.values = layer.keys + (after.keys - before.keys), layer.values + (after.values - before.values)
