"""The two base models of a run: their configs and tokenizers first, their weights last."""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from ..atlas import MODELS
from ..data.tokenizers import load_tokenizer
from ..modeling import H2CBridgeConfig, H2CBridgeModel, H2CForCausalLM, H2CProcessor
from ..modeling.configuration_h2c import record_commit
from .arguments import BRIDGE_FIELDS, H2CArguments


QUANTIZATION = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}


@dataclass
class Pair:
    """A Sharer and a Receiver by name. The name 'atlas' stands for the tiny model that comes with the package."""

    arguments: H2CArguments

    def source(self, role: str) -> dict:
        """Arguments of any `from_pretrained` that say where the model is."""
        name = getattr(self.arguments, role)
        revision = getattr(self.arguments, f"{role}_revision")
        return {
            "pretrained_model_name_or_path": str(MODELS / role) if name == "atlas" else name,
            "trust_remote_code": self.arguments.trust_remote_code,
            **({} if revision is None else {"revision": revision}),
        }

    def config(self, role: str) -> PreTrainedConfig:
        return record_commit(AutoConfig.from_pretrained(**self.source(role)), getattr(self.arguments, f"{role}_revision"))

    def processor(self) -> H2CProcessor:
        return H2CProcessor(*(load_tokenizer(**self.source(role)) for role in ("sharer", "receiver")))

    def bridge_config(self) -> H2CBridgeConfig:
        """The config of the bridge to train: a new one's, or that of `init_from`.

        Raises:
            ValueError: where `init_from` is a bridge for another pair, or of another form than the arguments ask for.
        """
        configs = self.config("sharer"), self.config("receiver")
        given = {name: value for name in BRIDGE_FIELDS if (value := getattr(self.arguments, name)) is not None}
        if given.get("sharer_rank") == 0:  # None, which in a yaml is what is not given
            given["sharer_rank"] = None
        if self.arguments.init_from:
            config = H2CBridgeConfig.from_pretrained(self.arguments.init_from)
            config.check_pair(*configs)
            for name, value in given.items():
                if value != (got := getattr(config, name)):
                    raise ValueError(f"init_from is a bridge with {name} {got}, and {name} is {value}; expected the same, or none.")
            return config
        # The tiny models are saved beside the bridge, in folders of its own repo.
        beside = {f"{role}_model_id": f"./{role}" for role in ("sharer", "receiver") if getattr(self.arguments, role) == "atlas"}
        return H2CBridgeConfig.from_pair(*configs, **beside, **given)

    def model(self, device: torch.device) -> H2CForCausalLM:
        """All three, with weights; the Sharer's config alone where its states are read from disk, or blanked."""
        config = self.bridge_config()
        receiver = AutoModelForCausalLM.from_pretrained(**self.source("receiver"), **self._loading())
        sharer = self.config("sharer") if self.arguments.sharer_states or self.arguments.blank_sharer else self._sharer(device)
        # Made here, after `set_seed`: every rank draws the same weights.
        bridge = H2CBridgeModel.from_pretrained(self.arguments.init_from, dtype=torch.float32) if self.arguments.init_from else None
        return H2CForCausalLM(config, sharer, receiver, bridge)

    def _sharer(self, device: torch.device) -> PreTrainedModel:
        kwargs = self._loading()
        if self.arguments.sharer_quantization != "none":
            kwargs["quantization_config"] = BitsAndBytesConfig(**QUANTIZATION[self.arguments.sharer_quantization])
            kwargs["device_map"] = {"": device}  # quantized on its way to the rank's own device
        if self.arguments.sharer_device_map:
            kwargs["device_map"] = self.arguments.sharer_device_map
        return AutoModelForCausalLM.from_pretrained(**self.source("sharer"), **kwargs)

    def _loading(self) -> dict:
        attention = self.arguments.attn_implementation
        return {"dtype": self.arguments.base_dtype, **({} if attention is None else {"attn_implementation": attention})}
