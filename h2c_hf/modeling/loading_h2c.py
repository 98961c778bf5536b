"""Load a bridge and its base models: `from_pair`, `from_pretrained`, their arguments by model, adapters."""

import contextlib
import copy
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file


try:
    from transformers import GgufConfig
except ImportError:  # before 5.24
    GgufConfig = None

from .base_models_h2c import location, record_commit
from .configuration_h2c import HUB_ARGUMENTS, H2CBridgeConfig
from .families_h2c import check_joined
from .generation_h2c import own_defaults
from .inputs_h2c import execution_device
from .modeling_h2c_bridge import H2CBridgeModel
from .stock_h2c import ROLES, by_role


if TYPE_CHECKING:
    from .modeling_h2c import H2CForCausalLM


# Arguments of stock `from_pretrained` that say how weights are placed: for both base models.
PLACEMENT = (
    "max_memory", "offload_folder", "offload_buffers", "use_kernels", "kernel_config", "allow_all_kernels",
    "experts_implementation",
)  # fmt: skip
# Arguments for a whole model that would say nothing, or something wrong, about a bridge.
FOR_ONE_MODEL = (
    "quantization_config", "load_in_4bit", "load_in_8bit", "gguf_file", "tp_plan", "tp_size", "device_mesh",
    "distributed_config", "adapter_kwargs", "adapter_name",
)  # fmt: skip


def base_arguments(
    kwargs: dict,
    device_map,
    sharer_quantization_config,
    sharer_kwargs: dict | None,
    receiver_kwargs: dict | None,
) -> dict[str, dict]:
    """Return the arguments to load either base model with, by role; take them out of `kwargs`.

    Raises:
        ValueError: for an argument that is given under two names, or that is for one model and not for three.
    """
    # What the Auto classes pass on without being asked.
    if set(kwargs.get("adapter_kwargs") or {}) <= {"token", "revision"}:
        kwargs.pop("adapter_kwargs", None)
    for name in FOR_ONE_MODEL:
        if kwargs.pop(name, None) is not None:
            hint = (
                "sharer_quantization_config"
                if name == "quantization_config"
                else f"sharer_kwargs={{{name!r}: ...}}"
            )
            raise ValueError(
                f"{name} is for a whole model, and these are three; use {hint}, or receiver_kwargs."
            )
    dtypes = [kwargs.pop(name) for name in ("dtype", "torch_dtype") if kwargs.get(name) is not None]
    if len(dtypes) == 2 and dtypes[0] != dtypes[1]:
        raise ValueError(
            f"Got dtype={dtypes[0]} and torch_dtype={dtypes[1]}; expected one: they are two names for one "
            "argument."
        )
    if dtypes and isinstance(dtypes[0], dict):
        raise ValueError(
            f"dtype is {dtypes[0]}; expected one for all three models, or sharer_kwargs={{'dtype': ...}} and "
            "receiver_kwargs."
        )
    if dtypes:
        kwargs["dtype"] = dtypes[0]
    shared = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    shared |= {"dtype": kwargs.get("dtype") or "auto", "device_map": device_map}
    shared |= {name: kwargs.pop(name) for name in PLACEMENT if name in kwargs}
    attention = by_role(kwargs.pop("attn_implementation", None))
    given = {"sharer": sharer_kwargs or {}, "receiver": receiver_kwargs or {}}
    arguments = {}
    for role in ROLES:
        arguments[role] = dict(shared)
        if shared.get("offload_folder") is not None:  # both models have files of the same names
            arguments[role]["offload_folder"] = os.path.join(shared["offload_folder"], role)
        if attention[role] is not None:
            arguments[role]["attn_implementation"] = attention[role]
        arguments[role] |= given[role]
    if sharer_quantization_config is not None:
        arguments["sharer"]["quantization_config"] = sharer_quantization_config
    return arguments


@contextlib.contextmanager
def naming(model_id: str | os.PathLike):
    """Name a base model in the errors of loading it; transformers' own need not."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise OSError(f"The base model {str(model_id)!r} could not be loaded: {reason}.") from error


def load(model_id: str | os.PathLike, **arguments) -> PreTrainedModel:
    """Load a base model that knows the commit it was read at. An adapter's id brings its base model along.

    Args:
        arguments: of `from_pretrained`. The weights of a `gguf_file` are dequantized unless
            `quantization_config` says otherwise: transformers keeps them packed by default since 5.24, and
            always dequantized them before.

    Raises:
        OSError: naming the model, if there is none.
    """
    hub = {name: arguments[name] for name in ("revision", "subfolder", *HUB_ARGUMENTS) if name in arguments}
    gguf_file = arguments.get("gguf_file")
    if gguf_file is not None:
        hub["filename"] = gguf_file
        if GgufConfig is not None and arguments.get("quantization_config") is None:
            arguments["quantization_config"] = GgufConfig(dequantize=True)
        # By its path: transformers prefers a file of this name in the working directory.
        if os.path.isdir(model_id):
            arguments["gguf_file"] = os.path.abspath(
                os.path.join(model_id, arguments.get("subfolder") or "", gguf_file)
            )
    with naming(model_id):
        model = AutoModelForCausalLM.from_pretrained(model_id, **arguments)
    if has_adapters(model):  # stock: the name of the base model alone
        load_magnitudes(model, model_id, **{name: value for name, value in hub.items() if name != "filename"})
        model.config._name_or_path, model.config._commit_hash = str(model_id), arguments.get("revision")
    else:
        record_commit(model.config, **hub)
    return model


def load_magnitudes(model: PreTrainedModel, model_id: str | os.PathLike, **hub) -> None:
    """Load the magnitudes of DoRA adapters: transformers looks for another name and leaves them random.

    Args:
        hub: how the adapters' repo is read (`revision`, `token` ...).

    Raises:
        ValueError: if they are in no safetensors file, or belong to no layer that is in memory.
    """
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if ".lora_magnitude_vector." in name
    }
    if not parameters:
        return
    path = cached_file(
        model_id, "adapter_model.safetensors", **hub, _raise_exceptions_for_missing_entries=False
    )
    saved = {} if path is None else load_file(path)
    for name, parameter in parameters.items():
        part = name.partition(".lora_magnitude_vector.")[0]
        magnitudes = saved.get(f"base_model.model.{part}.lora_magnitude_vector")
        if magnitudes is None or parameter.is_meta:
            raise ValueError(
                f"The magnitudes of the DoRA adapters in {str(model_id)!r} were not loaded for {part}; "
                "expected adapter_model.safetensors as PEFT saves it, and layers in memory. Give the model "
                f"itself: PeftModel.from_pretrained(base_model, {str(model_id)!r})."
            )
        parameter.data.copy_(magnitudes)


def without_wrapper(model: PreTrainedModel | PreTrainedConfig) -> PreTrainedModel | PreTrainedConfig:
    """Return the language model in a `PeftModel`, with its adapters in place; any other model as it is.

    Raises:
        ValueError: for adapters that are no part of the language model (prompt tuning, prefix tuning).
    """
    if isinstance(model, PreTrainedModel | PreTrainedConfig) or not hasattr(model, "get_base_model"):
        return model
    if kinds := [str(config.peft_type) for config in model.peft_config.values() if config.is_prompt_learning]:
        raise ValueError(
            f"Got a model with {kinds[0]}, which is no part of its layers; expected adapters such as LoRA."
        )
    return model.get_base_model()


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether layers of PEFT are in the model."""
    return any(hasattr(module, "adapter_layer_names") for module in model.modules())


def names_adapters(model: PreTrainedModel, model_id: str | None) -> bool:
    """Whether `model_id` brings the model's adapters along: it is their repo, or not the model's own id."""
    below = {
        getattr(config, "base_model_name_or_path", None)
        for config in getattr(model, "peft_config", {}).values()
    }
    if model_id is None or model_id in below:
        return False
    if model_id != location(model.config) and not os.path.isdir(model_id):
        return True
    return find_adapter_config_file(model_id, local_files_only=True) is not None


def check_adapters(models: dict[str, PreTrainedModel | None], config: PreTrainedConfig, saving: bool) -> None:
    """Compare the base models' adapters with the ids in a bridge's config.

    Raises:
        ValueError: when saving, if an id leaves adapters out: the bridge would be loaded for another model.
            (A warning before.)
    """
    for role, model in models.items():
        model_id = getattr(config, f"{role}_model_id")
        if model is not None and has_adapters(model) and not names_adapters(model, model_id):
            message = (
                f"The {role} has adapters, and {role}_model_id is {model_id!r}, which names the model "
                f"without them: a saved bridge would be loaded for another model. Set config.{role}_model_id "
                "to the adapters' repo, or merge them and save the model."
            )
            if saving:
                raise ValueError(message)
            warnings.warn(message, stacklevel=3)


def device_map_of(models: dict[str, PreTrainedModel | None], bridge: torch.nn.Module) -> dict | None:
    """Return each part's device, as `from_pretrained(device_map=...)` notes it; None for one device."""
    places = {"bridge": bridge.device}
    for role, model in models.items():
        if model is not None:
            parts = getattr(model, "hf_device_map", None) or {"": execution_device(model)}
            places |= {f"{role}.{name}".rstrip("."): device for name, device in parts.items()}
    return places if len({str(device) for device in places.values()}) > 1 else None


class LoadingMixin:
    """Constructors of `H2CForCausalLM`."""

    @classmethod
    def from_pair(
        cls: Any,
        sharer: PreTrainedModel | PreTrainedConfig | str,
        receiver: PreTrainedModel | str,
        bridge: H2CBridgeModel | None = None,
        strict_revisions: bool = False,
        **overrides,
    ) -> "H2CForCausalLM":
        """Join two models (or Hub ids, or folders), with a new bridge if none is given.

        Args:
            sharer, receiver: decoder-only language models of transformers. An id is loaded in the dtype of
                its weights. The Sharer's config stands for a Sharer that is not in memory: every call then
                needs `sharer_hidden_states`.
            bridge: a bridge for this pair.
            strict_revisions: refuse, rather than warn of, another revision of a model than `bridge` was
                trained on.
            overrides: fields of `H2CBridgeConfig` for the new bridge.

        Raises:
            ValueError: if `bridge` was made for other shapes, or no bridge can join one of the models.
        """
        if bridge is not None and overrides:
            raise ValueError(
                f"Got a bridge, which has its config, and fields for a new one's: {', '.join(overrides)}; "
                "expected either."
            )
        models = []
        for role, model in (("sharer", sharer), ("receiver", receiver)):
            if isinstance(model, str | os.PathLike):
                gguf_file = overrides.get(f"{role}_gguf_file")
                model = load(model, dtype="auto", **({"gguf_file": gguf_file} if gguf_file else {}))
            models.append(without_wrapper(model))
        configs = [model if isinstance(model, PreTrainedConfig) else model.config for model in models]
        config = bridge.config if bridge is not None else H2CBridgeConfig.from_pair(*configs, **overrides)
        for role, base in zip(("sharer", "receiver"), configs, strict=True):
            config.check_revision(role, getattr(base, "_commit_hash", None), strict_revisions)
        model = cls(config, *models, bridge)
        check_adapters(model._base_models(), config, saving=False)
        check_joined(model)
        return model

    @classmethod
    def from_pretrained(
        cls: Any,
        pretrained_model_name_or_path,
        *model_args,
        sharer: PreTrainedModel | str | None = None,
        receiver: PreTrainedModel | str | None = None,
        sharer_quantization_config=None,
        sharer_kwargs: dict | None = None,
        receiver_kwargs: dict | None = None,
        device_map=None,
        strict_revisions: bool = False,
        **kwargs,
    ) -> "H2CForCausalLM":
        """Load a trained bridge and the two models that its config names.

        Args:
            pretrained_model_name_or_path: the bridge's repo or folder.
            sharer, receiver: models, ids or folders to use instead of those that the config names.
            sharer_quantization_config: for the Sharer alone, for example
                `BitsAndBytesConfig(load_in_4bit=True)`.
            sharer_kwargs, receiver_kwargs: more arguments of `from_pretrained` for either model (dtype,
                attn_implementation ...).
            device_map: for the two models; the bridge goes to the Receiver's device.
            strict_revisions: refuse, rather than warn of, another revision of a base model than the bridge
                was trained on.
            kwargs: as for any model. `dtype` is for all three; by default each keeps the dtype of its
                weights. A base model that is given as an object keeps its own.

        Raises:
            ValueError: for loading arguments of a base model that is loaded already, and for all that
                `from_pair` refuses.
        """
        for role, given, own in (
            ("sharer", sharer, sharer_kwargs or sharer_quantization_config),
            ("receiver", receiver, receiver_kwargs),
        ):
            if own and isinstance(given, PreTrainedModel):
                raise ValueError(
                    f"Got a {role} that is loaded already, and arguments to load it with; expected either."
                )
        if (
            device_map is not None
            and isinstance(sharer, PreTrainedModel)
            and isinstance(receiver, PreTrainedModel)
        ):
            raise ValueError(
                f"device_map is {device_map!r}, and both base models are loaded already; expected None: they "
                "stay where they are."
            )
        if kwargs.get("attn_implementation") is None:
            kwargs["attn_implementation"] = getattr(kwargs.get("config"), "_asked_attention", None)
        # Of models that are loaded here, `base_arguments` takes care.
        attn_implementation = kwargs["attn_implementation"]
        arguments = base_arguments(
            kwargs, device_map, sharer_quantization_config, sharer_kwargs, receiver_kwargs
        )
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        repo = {"revision": kwargs.get("revision"), "subfolder": kwargs.get("subfolder", ""), **hub}
        generation_config = kwargs.pop("generation_config", None)
        with_info = kwargs.pop("output_loading_info", False)
        bridge, info = H2CBridgeModel.from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        models = []
        for role, given in (("sharer", sharer), ("receiver", receiver)):
            if given is None:
                given, arguments[role] = bridge.config.locate(
                    role, pretrained_model_name_or_path, repo, arguments[role]
                )
            models.append(load(given, **arguments[role]) if isinstance(given, str | os.PathLike) else given)
        model = cls.from_pair(*models, bridge, strict_revisions=strict_revisions)
        for role, given in (("sharer", sharer), ("receiver", receiver)):
            if isinstance(given, PreTrainedModel):
                model.set_attn_implementation({role: by_role(attn_implementation)[role]})
        if isinstance(attn_implementation, str):
            model.config._attn_implementation = attn_implementation
        if pretrained_model_name_or_path is not None:  # else the weights are a state dict
            with contextlib.suppress(OSError):  # the repo need not have one; the Receiver's serves then
                model.generation_config = own_defaults(
                    GenerationConfig.from_pretrained(pretrained_model_name_or_path, **repo)
                )
        if generation_config is not None:
            model.generation_config = copy.deepcopy(generation_config)
        if with_info:
            return model, info  # type: ignore[return-value]  # as stock `from_pretrained`
        return model


__all__ = ["LoadingMixin", "base_arguments", "check_adapters", "device_map_of", "load", "without_wrapper"]
