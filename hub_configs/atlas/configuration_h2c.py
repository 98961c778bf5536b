"""Configuration of an H2C bridge: the shapes of the pair that it joins, and of the bridge itself."""

import copy
import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .base_models_h2c import heads_that_divide, is_hub_id, pair_values, rope_values
from .folders_h2c import copy_base_models


if TYPE_CHECKING:
    # Never run: transformers reads these lines when it fetches remote code, so that whichever Auto class
    # comes first brings all the files along, and a bridge that was loaded from the Hub can be saved again as
    # a whole repo.
    from .modeling_h2c import H2CForCausalLM  # noqa: F401
    from .modeling_h2c_bridge import H2CBridgeModel  # noqa: F401
    from .pipeline_h2c import H2CTextGenerationPipeline  # noqa: F401
    from .processing_h2c import H2CProcessor  # noqa: F401

# The files that make a repo work without this package. Flat, and they import nothing but torch, transformers
# and each other.
REMOTE_CODE = (
    "configuration_h2c.py", "base_models_h2c.py", "inputs_h2c.py", "loss_h2c.py", "modeling_h2c_bridge.py",
    "bridges_h2c.py", "conversation_h2c.py", "drafts_h2c.py", "families_h2c.py", "folders_h2c.py",
    "generation_h2c.py", "layers_h2c.py", "loading_h2c.py", "message_h2c.py", "messages_h2c.py",
    "passes_h2c.py", "prefixes_h2c.py", "reading_h2c.py", "stock_h2c.py", "weights_h2c.py",
    "modeling_h2c.py", "processing_h2c.py", "pipeline_h2c.py",
)  # fmt: skip
AUTO_MAP = {
    "AutoConfig": "configuration_h2c.H2CBridgeConfig",
    "AutoModel": "modeling_h2c_bridge.H2CBridgeModel",
    "AutoModelForCausalLM": "modeling_h2c.H2CForCausalLM",
    "AutoProcessor": "processing_h2c.H2CProcessor",
}
CUSTOM_PIPELINES = {
    "text-generation": {
        "impl": "pipeline_h2c.H2CTextGenerationPipeline",
        "pt": ["AutoModelForCausalLM"],
        "type": "text",
    }
}
# Arguments of any `from_pretrained` that say how a repo is read, whatever its revision.
HUB_ARGUMENTS = ("cache_dir", "token", "local_files_only", "force_download")
LAYER_ALIGNMENTS = ("top_down", "last")
BRIDGE_FORMS = ("rewrite", "message")
# What the original project built: every field of `H2CBridgeConfig` that says how a bridge is built, and their
# defaults, so that configs of before there were other forms are read as what they are. What a new bridge
# gets, says `from_pair`.
PUBLISHED: dict[str, Any] = {
    "bridge_form": "rewrite",
    "num_attention_heads": 16, "ffn_multiplier": 4, "dropout": 0.1, "gate_init": 1.0,
    "layer_alignment": "top_down", "recency_bias": False, "start_shut": False, "update_scale": 1.0,
    "sharer_rank": None, "token_rank": None, "token_hidden_size": None,
}  # fmt: skip
DEFAULT_FORM = "message"  # of a new bridge
# Fields that say how a bridge of one form is built, and are without effect in the other.
FORM_FIELDS = {
    "rewrite": (
        "num_attention_heads", "ffn_multiplier", "gate_init", "layer_alignment", "recency_bias", "start_shut",
        "update_scale", "sharer_rank",
    ),
    "message": ("token_rank", "token_hidden_size"),
}  # fmt: skip
DEFAULT_HEADS = 8  # of a new bridge, at most
TOKEN_RANK = 256  # of a new bridge, at most
# More than any pair has, and less than would take a machine's memory before the weights are looked at.
LARGEST = {
    "sharer_hidden_size": 2**16, "sharer_num_hidden_layers": 2**10, "receiver_num_hidden_layers": 2**10,
    "receiver_num_key_value_heads": 2**10, "receiver_head_dim": 2**12, "num_attention_heads": 2**16,
    "ffn_multiplier": 2**6, "sharer_rank": 2**16, "token_rank": 2**16, "token_hidden_size": 2**16,
}  # fmt: skip
OPTIONAL_PARTS = ("sharer_rank", "token_rank", "token_hidden_size")  # may be None: the bridge does without
MOST_PARAMETERS = 2**36


@strict
class H2CBridgeConfig(PreTrainedConfig):
    r"""
    Args:
        sharer_model_id, receiver_model_id: the two base models: a Hub id, a local folder, or `"./name"`
            for a subfolder of the bridge's own repo.
        sharer_revision, receiver_revision: the commits that the bridge was trained on, if known.
        sharer_gguf_file, receiver_gguf_file: the GGUF file to load in that folder or repo, if the weights are
            in one.
        sharer_hidden_size: width of the Sharer's hidden states.
        sharer_num_hidden_layers: S; the Sharer gives S + 1 hidden states, the first being the embedding
            output.
        receiver_num_hidden_layers, receiver_num_key_value_heads, receiver_head_dim: shape of the Receiver's
            KV cache.
        num_attention_heads: heads of each block's cross-attention, over the flattened keys (or values) of one
            layer.
        ffn_multiplier: inner width of each block's FFN over the flattened width.
        dropout: in the attention and inside the FFN, in training.
        bridge_form: `"rewrite"`: blocks of cross-attention change the keys and values of the Receiver's own
            prompt, as published. `"message"`: every Sharer token becomes a cache position of the Receiver,
            before its prompt; see `message_h2c`. The fields from `num_attention_heads` to `sharer_rank` are
            those of the first form, `token_rank` to `receiver_layer_types` those of the second.
        gate_init: each gate's logit at the start; sigmoid(1) = 0.73.
        layer_alignment: which of the Sharer's hidden states a Receiver layer reads. `"top_down"`: Receiver
            layer r, counted from the top as t = R - 1 - r, is bridged when t < min(R, S) and reads hidden
            state S - 1 - t, as published. `"last"`: it reads hidden state S - t. The last state, from which
            the Sharer's own answer is decoded, is read in this way alone.
        recency_bias: the blocks' heads attend less to tokens that the Sharer read earlier: head h of H
            subtracts 2 ** (-8 * h / H) from its scores for each token that stands after (the slopes of ALiBi,
            Press et al. 2022, of the published ones one step steeper). A causal Sharer has read the most at
            its last token, and its answer stands there.
        start_shut: the last projection of each block starts at zero (as LoRA's second, Hu et al. 2021), so
            that a new bridge leaves the Receiver as it is, to the bit, whatever the gate.
        update_scale: factor of each block's update (as LoRA's alpha): AdamW's steps are so much longer there.
        sharer_rank: the two blocks of a layer read the Sharer through one shared projection of this width;
            None: each through its own, from the Sharer's full width. (The joint compression of keys and
            values in DeepSeek-V2, 2024.)
        token_rank: every layer of the message also reads the Sharer's embeddings, through one projection to
            this width that all layers share; None: it does not.
        token_hidden_size: that projection is a linear map plus a perceptron with so many hidden units: a
            dictionary, which is learned from the two vocabularies and not trained afterwards. None: a linear
            map, trained with the rest.
        receiver_rope_parameters: the Receiver's, by which a message's keys are rotated to their positions;
            None: they are not rotated.
        receiver_layer_types: of each Receiver layer, if its `rope_parameters` differ by type.
        receiver_max_position_embeddings: the Receiver's context window.
        vocab_size, hidden_size, bos_token_id, eos_token_id, pad_token_id: the Receiver's, for code that reads
            them of any model (watermark detection, transition scores).
    """

    model_type = "h2c_bridge"
    _folder = None  # from which a bridge was loaded, and which may hold its base models
    _asked_attention = None  # of the base models, by an Auto class
    # Stock names for the model that writes the text.
    attribute_map = {
        "num_hidden_layers": "receiver_num_hidden_layers",
        "num_key_value_heads": "receiver_num_key_value_heads", "head_dim": "receiver_head_dim",
        "max_position_embeddings": "receiver_max_position_embeddings",
    }  # fmt: skip
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # the latter from transformers 5.24 on

    sharer_model_id: str | None = None
    sharer_revision: str | None = None
    receiver_model_id: str | None = None
    receiver_revision: str | None = None
    sharer_gguf_file: str | None = None
    receiver_gguf_file: str | None = None
    sharer_hidden_size: int = 4096
    sharer_num_hidden_layers: int = 32
    receiver_num_hidden_layers: int = 24
    receiver_num_key_value_heads: int = 2
    receiver_head_dim: int = 64
    num_attention_heads: int = 16
    ffn_multiplier: int = 4
    dropout: float = 0.1
    gate_init: float = 1.0
    initializer_range: float = 0.02
    layer_alignment: str = "top_down"
    recency_bias: bool = False
    start_shut: bool = False
    update_scale: float = 1.0
    sharer_rank: int | None = None
    bridge_form: str = "rewrite"
    token_rank: int | None = None
    token_hidden_size: int | None = None
    receiver_rope_parameters: dict | None = None
    receiver_layer_types: list[str] | None = None
    receiver_max_position_embeddings: int | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.setdefault("custom_pipelines", copy.deepcopy(CUSTOM_PIPELINES))
        super().__post_init__(**kwargs)
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL_PARTS:
                continue
            if isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
            if value > largest:
                raise ValueError(f"{name} is {value:,}; expected at most {largest:,}.")
        if (parameters := self._projection_parameters()) > MOST_PARAMETERS:
            raise ValueError(
                f"A bridge of these shapes has {parameters:,} parameters; expected at most "
                f"{MOST_PARAMETERS:,}."
            )
        if not 0 < self.update_scale < float("inf"):
            raise ValueError(f"update_scale is {self.update_scale}; expected more than 0, and finite.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected at least 0 and less than 1.")
        if self.receiver_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, which does not divide the Receiver's "
                f"flattened width {self.receiver_size} ({self.receiver_num_key_value_heads} key-value heads "
                f"x head_dim {self.receiver_head_dim})."
            )
        if self.bridge_form not in BRIDGE_FORMS:
            raise ValueError(
                f"bridge_form is {self.bridge_form!r}; expected one of {', '.join(BRIDGE_FORMS)}."
            )
        if self.token_hidden_size is not None and self.token_rank is None:
            raise ValueError(
                f"token_hidden_size is {self.token_hidden_size} and token_rank is None; expected both, or "
                "token_rank alone."
            )
        if (
            self.token_hidden_size is not None
            and self.hidden_size is not None
            and self.token_rank > self.hidden_size
        ):
            raise ValueError(
                f"token_rank is {self.token_rank}; expected at most the width of the Receiver, "
                f"{self.hidden_size}, with a dictionary."
            )
        if self.layer_alignment not in LAYER_ALIGNMENTS:
            raise ValueError(
                f"layer_alignment is {self.layer_alignment!r}; expected one of {', '.join(LAYER_ALIGNMENTS)}."
            )

    def _projection_parameters(self) -> int:
        """Return the number of a bridge's parameters but for biases and norms."""
        size, wide, layers = self.receiver_size, self.sharer_hidden_size, self.receiver_num_hidden_layers
        if self.bridge_form == "message":
            rank, hidden = self.token_rank or 0, self.token_hidden_size or 0
            return layers * 2 * size * (wide + rank) + wide * rank + hidden * (wide + rank)
        block = (2 + 2 * self.ffn_multiplier) * size**2 + 2 * size * (self.sharer_rank or wide)
        return min(self.sharer_num_hidden_layers, layers) * (2 * block + wide * (self.sharer_rank or 0))

    def to_dict(self) -> dict:
        """As in transformers."""
        return {
            name: value
            for name, value in super().to_dict().items()
            if name not in ("_folder", "_asked_attention")
        }

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers. The Auto classes hand an attention implementation to the config alone; it is
        kept for the base models."""
        asked = kwargs.get("attn_implementation")
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._asked_attention = asked
        return loaded

    @property
    def receiver_size(self) -> int:
        """Width of the Receiver's keys (or values) of one layer, flattened over heads."""
        return self.receiver_num_key_value_heads * self.receiver_head_dim

    @property
    def alignment(self) -> list[tuple[int, int]]:
        """(receiver layer, index into the Sharer's hidden states) of every bridged layer, from the bottom up.
        A message has keys and values in all Receiver layers, from the Sharer's layers between the first sixth
        and the last."""
        receiver_layers, sharer_layers = self.receiver_num_hidden_layers, self.sharer_num_hidden_layers
        if self.bridge_form == "message":
            first, step = sharer_layers / 6, sharer_layers * 2 / 3 / max(1, receiver_layers - 1)
            return [(layer, round(first + layer * step)) for layer in range(receiver_layers)]
        depth = min(receiver_layers, sharer_layers)
        top = sharer_layers - (self.layer_alignment == "top_down")
        return [(receiver_layers - 1 - t, top - t) for t in reversed(range(depth))]

    @property
    def read_layers(self) -> list[int]:
        """The indices into the Sharer's hidden states that the bridge reads."""
        return sorted({index for _, index in self.alignment} | ({0} if self.reads_embeddings else set()))

    @property
    def reads_embeddings(self) -> bool:
        """Whether every layer also reads the Sharer's hidden state 0."""
        return self.bridge_form == "message" and self.token_rank is not None

    @classmethod
    def _check_overrides(cls, overrides: dict) -> None:
        """Refuse unknown names: a config takes any, and a typo would be without effect."""
        if unknown := sorted(overrides.keys() - cls.__annotations__.keys()):
            raise ValueError(
                f"Got {', '.join(unknown)} for a new bridge; expected fields of H2CBridgeConfig. For a base "
                "model, load it and pass it."
            )

    @classmethod
    def published(cls, *pair: PreTrainedConfig, **overrides) -> "H2CBridgeConfig":
        """The form of the original project, whatever the default of `from_pair` is.

        Args:
            pair: the Sharer's and the Receiver's configs, as `from_pair` takes them; or none, for the
                reference pair's shapes.
            overrides: fields of this class.
        """
        cls._check_overrides(overrides)
        values = dict(PUBLISHED)
        if pair:
            values |= pair_values(*pair)
            values["num_attention_heads"] = heads_that_divide(values, PUBLISHED["num_attention_heads"])
        return cls(**{**values, **overrides})

    @classmethod
    def from_pair(
        cls, sharer_config: PreTrainedConfig, receiver_config: PreTrainedConfig, **overrides
    ) -> "H2CBridgeConfig":
        """Return the config of a new bridge between two models, in the default form.

        The defaults are compared in docs/content.md and docs/ablation.md; `published` gives the original
        form.

        Args:
            overrides: fields of this class. `bridge_form` chooses between the two forms.

        Raises:
            ValueError: for other names, and for fields of the other form.
        """
        cls._check_overrides(overrides)
        form = overrides.get("bridge_form", DEFAULT_FORM)
        for other, names in FORM_FIELDS.items():
            foreign = [name for name in names if overrides.get(name) is not None]
            if foreign and form in BRIDGE_FORMS and other != form:
                raise ValueError(
                    f"{foreign[0]} is {overrides[foreign[0]]}, a field of the form {other!r}, and "
                    f"bridge_form is {form!r}; expected bridge_form {other!r}, or no {foreign[0]}."
                )
        values = {**PUBLISHED, **pair_values(sharer_config, receiver_config), "bridge_form": DEFAULT_FORM}
        values["num_attention_heads"] = heads_that_divide(values, DEFAULT_HEADS)
        if form == "message":
            values |= {
                "token_rank": min(TOKEN_RANK, values["sharer_hidden_size"]),
                **rope_values(receiver_config),
            }
        else:
            # The keys and values that are made of the shared projection are no wider.
            values |= {
                "recency_bias": True,
                "sharer_rank": values["receiver_num_key_value_heads"] * values["receiver_head_dim"],
            }
        return cls(**{**values, **overrides})

    def check_pair(self, sharer_config: PreTrainedConfig, receiver_config: PreTrainedConfig) -> None:
        """
        Raises:
            ValueError: if the shapes of a bridge with this config are not those of the two models.
        """
        self.check_shapes(type(self).from_pair(sharer_config, receiver_config))

    def check_shapes(self, pair: "H2CBridgeConfig") -> None:
        """
        Raises:
            ValueError: if the shapes of a bridge with this config are not those of `pair`.
        """
        for field in (
            "sharer_hidden_size", "sharer_num_hidden_layers", "receiver_num_hidden_layers",
            "receiver_num_key_value_heads", "receiver_head_dim",
        ):  # fmt: skip
            got, expected = getattr(pair, field), getattr(self, field)
            if got != expected:
                raise ValueError(
                    f"This bridge does not fit: its {field} is {expected}, and the given model's is {got}."
                )

    def check_revision(self, role: str, got: str | None, strict: bool = False) -> None:
        """Another revision of a base model has other hidden states: warn, or raise when strict. role:
        "sharer" or "receiver"."""
        expected = getattr(self, f"{role}_revision")
        if expected and got and expected != got:
            message = f"The {role} is at revision {got}; this bridge was trained on {expected}."
            if strict:
                raise ValueError(message)
            warnings.warn(message, stacklevel=3)

    def locate(self, role: str, path, repo: dict, arguments: dict) -> tuple[str, dict]:
        """Return the id or path of a base model, and the `arguments` to load it with. `"./name"` is a folder
        in the bridge's own repo, which is at `path` and was read with the arguments `repo`."""
        model_id, revision = getattr(self, f"{role}_model_id"), getattr(self, f"{role}_revision")
        if model_id is None:
            raise ValueError(f"The bridge's config names no {role}_model_id; pass {role}=MODEL_OR_ID.")
        if model_id.startswith("./"):
            name = model_id[2:]
            if not name or "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(
                    f"{role}_model_id is {model_id!r}; './name' must name a folder directly inside the "
                    "bridge's repo."
                )
            inside = f"{repo.get('subfolder', '')}/{name}".lstrip("/")
            # A folder by its own path: transformers takes the generation config of a folder's `subfolder`
            # from the folder above it, where the path is absolute, and a model that stops at the other's end
            # token runs on.
            if Path(path).is_dir():
                model_id, revision = str(Path(path) / inside), None
            else:
                model_id, revision = path, repo.get("revision")
                arguments = {**arguments, "subfolder": inside}
        elif not Path(path).is_dir() and (
            model_id.startswith(("/", "~", ".")) or ".." in model_id or "\\" in model_id or ":" in model_id
        ):
            raise ValueError(
                f"{role}_model_id is {model_id!r}: a repo on the Hub may name a Hub id or './name', and no "
                "path."
            )
        gguf_file = getattr(self, f"{role}_gguf_file")
        if gguf_file is not None:
            if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", gguf_file) or ".." in gguf_file:
                raise ValueError(
                    f"{role}_gguf_file is {gguf_file!r}; expected the name of a file in {model_id}, and no "
                    "path."
                )
            arguments = {"gguf_file": gguf_file, **arguments}
        return model_id, {**({} if revision is None else {"revision": revision}), **arguments}

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the remote code travels along. (`register_for_auto_class` copies the files of
        one class only, and one repo serves four Auto classes.)"""
        for role in ("sharer", "receiver"):
            name = getattr(self, f"{role}_model_id")
            if name is None:
                warnings.warn(
                    f"The bridge's config names no {role}_model_id: loading it needs {role}=MODEL_OR_ID.",
                    stacklevel=2,
                )
            elif not name.startswith("./") and not is_hub_id(name):
                warnings.warn(
                    f"{role}_model_id is the folder {name!r}: the bridge loads only where that folder "
                    "exists. Set it to a Hub id.",
                    stacklevel=2,
                )
        # `transformers serve` looks this name up in the transformers module, which has no class of ours.
        self.architectures = ["AutoModelForCausalLM"]
        super().save_pretrained(save_directory, *args, **kwargs)
        copy_base_models(self, self._folder or self._name_or_path, save_directory)
        for name in REMOTE_CODE:
            source, target = Path(__file__).parent / name, Path(save_directory) / name
            if source.exists() and source.resolve() != target.resolve():
                shutil.copyfile(source, target)


__all__ = ["H2CBridgeConfig"]
