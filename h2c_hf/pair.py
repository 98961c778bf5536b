"""The two base models of a run and its bridge: configs and tokenizers first, weights last."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .atlas import MODELS
from .config_parser import read_template_kwargs
from .data.tokenizers import load_tokenizer
from .errors import naming
from .loading import ROLES, BaseModel
from .modeling import H2CBridgeConfig, H2CBridgeModel, H2CForCausalLM, H2CProcessor
from .modeling.configuration_h2c import OPTIONAL_PARTS, PUBLISHED
from .pair_fields import PairFields
from .prompts import set_template_kwargs


@dataclass
class Pair:
    """The Sharer, the Receiver and the bridge that the arguments of a run name."""

    arguments: PairFields

    def base(self, role: str) -> BaseModel:
        named = ("revision", "gguf_file")
        options = {name: getattr(self.arguments, f"{role}_{name}") for name in named}
        return BaseModel.find(
            getattr(self.arguments, role), role, trust_remote_code=self.arguments.trust_remote_code, **options
        )

    def source(self, role: str) -> dict:
        """Arguments of any `from_pretrained` that say where the model is."""
        return self.base(role).source()

    def config(self, role: str) -> PreTrainedConfig:
        with self.naming(role):
            return self.base(role).config()

    def naming(self, role: str):
        return naming(role.capitalize(), getattr(self.arguments, role))

    def processor(self) -> H2CProcessor:
        processor = H2CProcessor(
            *(self.base(role).tokenizer(getattr(self.arguments, f"{role}_chat_template")) for role in ROLES)
        )
        set_template_kwargs(processor, read_template_kwargs(self.arguments.chat_template_kwargs))
        return processor

    def bridge_config(self) -> H2CBridgeConfig:
        """The config of the bridge to train: a new one's, or that of `init_from`.

        Raises:
            ValueError: if `init_from` is a bridge for another pair, or of another form than the arguments ask
                for.
        """
        sharer, receiver = self.config("sharer"), self.config("receiver")
        given = {name: value for name in PUBLISHED if (value := getattr(self.arguments, name)) is not None}
        for name in OPTIONAL_PARTS:
            if given.get(name) == 0:  # None, which in a yaml is what is not given
                given[name] = None
        if self.arguments.init_from:
            config = H2CBridgeConfig.from_pretrained(self.arguments.init_from)
            config.check_pair(sharer, receiver)
            for name, value in given.items():
                if value != (got := getattr(config, name)):
                    raise ValueError(
                        f"init_from is a bridge with {name} {got}, and {name} is {value}; expected the same, "
                        "or none."
                    )
            return config
        located = {name: value for role in ROLES for name, value in self.base(role).fields(role).items()}
        return H2CBridgeConfig.from_pair(sharer, receiver, **{**located, **given})

    def message_window(self) -> int | None:
        """Return the Receiver's context window if the bridge gives the Sharer's tokens positions in it."""
        config = self.bridge_config()
        return config.receiver_max_position_embeddings if config.bridge_form == "message" else None

    def model(self, device: torch.device) -> H2CForCausalLM:
        """Load all three; only the Sharer's config if its states are read from disk, or blanked."""
        config = self.bridge_config()
        with self.naming("receiver"):
            receiver = self.base("receiver").model(**self._loading())
        sharer = self._sharer(device) if self.arguments.loads_sharer else self.config("sharer")
        # Made here, after `set_seed`: every rank draws the same weights.
        bridge = (
            H2CBridgeModel.from_pretrained(self.arguments.init_from, dtype=torch.float32)
            if self.arguments.init_from
            else None
        )
        return H2CForCausalLM(config, sharer, receiver, bridge)

    def _sharer(self, device: torch.device) -> PreTrainedModel:
        kwargs = self._loading()
        if self.arguments.sharer_quantization != "none":
            kwargs["device_map"] = {"": device}  # quantized on its way to the rank's own device
        if self.arguments.sharer_device_map:
            kwargs["device_map"] = self.arguments.sharer_device_map
        with self.naming("sharer"):
            return self.base("sharer").model(self.arguments.sharer_quantization, **kwargs)

    def _loading(self) -> dict:
        attention = self.arguments.attn_implementation
        return {
            "dtype": self.arguments.base_dtype,
            **({} if attention is None else {"attn_implementation": attention}),
        }


def atlas_pair(models: Path = MODELS) -> tuple[H2CForCausalLM, H2CProcessor]:
    """Return the tiny pair in fp32 with a new bridge of the rewriting form, on the GPU if there is one; and
    the processor."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sharer, receiver = (
        AutoModelForCausalLM.from_pretrained(models / role, dtype=torch.float32).to(device)
        for role in ("sharer", "receiver")
    )
    # The bridge's folder will hold both models beside it: see `save_bridge` of the quickstart. Without
    # dropout: one pass over the questions is too little to learn them by heart, and on a CPU it takes a third
    # of a step. Of the rewriting form: see hub_configs/atlas/training.yaml.
    model = H2CForCausalLM.from_pair(
        sharer,
        receiver,
        bridge_form="rewrite",
        sharer_model_id="./sharer",
        receiver_model_id="./receiver",
        dropout=0.0,
    )
    return model, H2CProcessor(*(load_tokenizer(models / role) for role in ("sharer", "receiver")))
