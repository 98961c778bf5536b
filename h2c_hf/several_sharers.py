"""Several Sharers into one Receiver, each through a bridge of its own.

No part of the remote code on the Hub: no Auto class leads here, and each bridge is saved as the ordinary repo
that it is.
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
from .modeling.generation_h2c import setting
from .modeling.inputs_h2c import check_prompt, refuse_cache, target_start
from .modeling.message_h2c import add_message, message_length, message_mask, with_message
from .modeling.stock_h2c import second_position


NAMES = "several_sharers.json"


class H2CSeveralSharers(nn.Module):
    """Models that share one Receiver, answering as one: the bridges' updates of the Receiver's own keys and
    values are summed. A Sharer that a call gives no inputs for is switched off in that call; with none the
    Receiver answers alone.

    Its parameters, its state dict and so a Trainer's checkpoints are those of the bridges. Inputs of a Sharer
    are a dict with `sharer_input_ids` and `sharer_attention_mask`, or `sharer_hidden_states`, as in
    `H2CForCausalLM.bridged_cache`; what an `H2CProcessor` returns can be given whole, since other names in it
    are not read.
    """

    def __init__(self, models: Mapping[str, H2CForCausalLM]):
        """
        Args:
            models: by a name for each Sharer. The bridge of each is the one that is active now.

        Raises:
            ValueError: for no model, two Receivers, or a name that can be no folder's.
        """
        super().__init__()
        if not models:
            raise ValueError("There are no models: got 0, expected at least 1.")
        first = next(iter(models))
        for name, model in models.items():
            # nn.ModuleDict refuses its own names, such as "keys".
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"A Sharer is named {name!r}; expected another name, of letters, digits and underscores: "
                    "it names a folder."
                )
            if model.receiver is not models[first].receiver:
                raise ValueError(
                    f"{name!r} and {first!r} hold a Receiver each; expected one and the same object: give "
                    "the second H2CForCausalLM.from_pretrained or from_pair receiver=first.receiver."
                )
        # Of the module tree are the bridges alone; the frozen models are held beside it.
        self.bridges = nn.ModuleDict({name: model.bridge for name, model in models.items()})
        self.models = dict(models)
        self.train(any(model.training for model in models.values()))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, sharers: Mapping | None = None, receiver=None, **kwargs
    ) -> "H2CSeveralSharers":
        """Load the bridges that `save_pretrained` wrote, and the base models, the Receiver once.

        Args:
            pretrained_model_name_or_path: a folder or repo.
            sharers: by name, a model, id or folder to use instead of the one that the bridge's config names.
            receiver: likewise.
            kwargs: as for `H2CForCausalLM.from_pretrained`, for each of them.
        """
        where = {name: kwargs[name] for name in ("revision", *HUB_ARGUMENTS) if name in kwargs}
        names = json.loads(Path(cached_file(pretrained_model_name_or_path, NAMES, **where)).read_text())
        if unknown := sorted({*(sharers or {})} - {*names}):
            raise ValueError(f"There is no Sharer {unknown[0]!r} here; expected one of {', '.join(names)}.")
        models = {}
        for name in names:
            given = {"sharer": (sharers or {}).get(name), "receiver": receiver}
            models[name] = H2CForCausalLM.from_pretrained(
                pretrained_model_name_or_path, subfolder=name, **given, **kwargs
            )
            receiver = models[name].receiver
            kwargs.pop("receiver_kwargs", None)  # it is loaded
        return cls(models)

    def save_pretrained(self, save_directory) -> None:
        """Write each bridge into a subfolder of its name, and the list of names."""
        for name, model in self.models.items():
            model.save_pretrained(Path(save_directory) / name)
        (Path(save_directory) / NAMES).write_text(json.dumps(list(self.models)) + "\n")

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
        """The cache from which the Receiver answers; empty if no Sharer is on, as that of
        `H2CForCausalLM.bridged_cache`.

        Args:
            input_ids, attention_mask: (batch, N), the Receiver's prompt, left-padded. It is prefilled once.
            sharers: inputs by name.

        Raises:
            ValueError: for a name that is unknown, a bridge that was swapped for another one, and all that a
                single model refuses.
        """
        sharers = sharers or {}
        for name in sharers:
            if name not in self.models:
                raise ValueError(f"There is no Sharer {name!r}; expected one of {', '.join(self.models)}.")
            if self.models[name].bridge is not self.bridges[name]:
                raise ValueError(
                    f"The bridge of {name!r} was swapped for another one; expected the one that was active "
                    "at the start."
                )
        on = [name for name, model in self.models.items() if name in sharers and not model._bridge_disabled]
        check_prompt(
            "", input_ids, attention_mask, self._any.receiver, least=2 if on else 1, bridged=bool(on)
        )
        if not on:
            cache = DynamicCache(config=self._any.receiver.config)
            cache.without_bridge = True
            return cache
        own, summed = self._any.prefill(input_ids, attention_mask), None
        for name in on:
            inputs = {key: value for key, value in sharers[name].items() if key.startswith("sharer_")}
            bridged = self.models[name].bridged_cache(input_ids, attention_mask, **inputs, receiver_cache=own)
            if summed is None:
                summed = bridged
            else:
                add_change(summed, own, bridged)
        return summed

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sharers: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As `H2CForCausalLM.forward`, which explains the arguments; `sharers` as in `bridged_cache`.

        Raises:
            ValueError: for `past_key_values`, and all that `bridged_cache` refuses.
        """
        refuse_cache(kwargs, "each call makes its own cache, of what the bridges write.")
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
        """As `H2CForCausalLM.generate`, on a dynamic cache; `sharers` as in `bridged_cache`.

        Raises:
            ValueError: for another kind of cache, `past_key_values`, and all that `bridged_cache` refuses.
        """
        refuse_cache(kwargs, "each call makes its own cache, of what the bridges write.")
        attention_mask, generation_config = second_position(
            attention_mask, kwargs.pop("generation_config", None)
        )
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        kind = setting(
            "cache_implementation", kwargs, [kwargs.get("generation_config"), self._any.generation_config]
        )
        if kind is not None:
            raise ValueError(
                f"cache_implementation is {kind!r}; expected None: what several bridges write is summed on a "
                "dynamic one."
            )
        cache = self.bridged_cache(input_ids, attention_mask, sharers)
        return self._any.generate(input_ids, attention_mask, past_key_values=cache, **kwargs)


def add_change(summed: Cache, own: Cache, bridged: Cache) -> None:
    """Add to `summed`, in place, the update of `own` by the bridge that wrote `bridged`.

    Layers that the bridge left alone stay the same. Messages stand one before the other, each at the
    positions that it has alone: a token of either is as near to the prompt.
    """
    if length := message_length(bridged):
        for index, layer in enumerate(bridged.layers):
            add_message(summed, index, layer.keys[:, :, :length], layer.values[:, :, :length])
        summed.message_mask = (
            with_message(bridged, message_mask(summed)) if message_length(summed) else message_mask(bridged)
        )
        return
    own_length = own.get_seq_length()
    for layer, before, after in zip(summed.layers, own.layers, bridged.layers, strict=True):
        if after.keys is not before.keys:
            for name in ("keys", "values"):
                held, change = getattr(layer, name), getattr(after, name) - getattr(before, name)
                setattr(
                    layer, name, torch.cat([held[:, :, :-own_length], held[:, :, -own_length:] + change], 2)
                )
