"""The one way to load a pair: configs, tokenizers and weights of Sharer and Receiver, and a trained bridge.

A base model is named by a Hub id, a folder, a GGUF file, 'atlas' (the tiny model in the package), or a name
that `h2c models` lists.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from .atlas import MODELS
from .config_parser import read_template_kwargs
from .data.tokenizers import load_tokenizer
from .errors import naming
from .hints import install
from .modeling import H2CBridgeConfig, H2CForCausalLM, H2CProcessor
from .modeling.base_models_h2c import is_hub_id, record_commit
from .modeling.configuration_h2c import HUB_ARGUMENTS
from .modeling.loading_h2c import load
from .precision import loaded_dtype
from .prompts import set_template_kwargs


QUANTIZATION = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}
ROLES = ("sharer", "receiver")
BUNDLED = {"atlas": MODELS}  # name of a pair in the package: the folder of its sharer/, receiver/ and bridge/
# Models that `h2c models fetch` gets: name, and the Hub id that a bridge's config stores.
FETCHED = {
    "gemma-3-270m": "google/gemma-3-270m",
    "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
ORIGIN = "h2c_origin.json"  # in a fetched folder: {"model_id", "revision", "source"}

# Of `from_pretrained`, for base models and bridge.
BASE_ARGUMENTS = ("dtype", "device_map", "attn_implementation", *HUB_ARGUMENTS)

# A question and its answer as plain text, for base models. Of earlier turns only the text remains: an end
# token in the middle of a prompt would end the document for a base model.
# `sharer_text` knows it by its words, in saved processors as well: they stay as they are.
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '\nAnswer: ' + message['content'] + (eos_token or '' if loop.last else '\n\n') }}"
    "{% else %}{{ message['content'] + ('\n\n' if message['role'] == 'system' else '') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\nAnswer:' }}{% endif %}"
)
# Before a tokenizer's own template: every answer begins with a space. In a byte-pair vocabulary " booth" is
# often one token where "booth" is two or three, and a small Receiver misspells those (docs/content.md).
SPACED = (
    "{% set spaced = namespace(messages=[]) %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' and message['content'] is string %}"
    "{% set message = dict(message, content=' ' + message['content'].lstrip()) %}{% endif %}"
    "{% set spaced.messages = spaced.messages + [message] %}{% endfor %}"
    "{% set messages = spaced.messages %}"
)
CHAT_TEMPLATES = {"plain": PLAIN, "spaced": SPACED}


def models_dir() -> Path:
    """Return the cache of `h2c models fetch`: `H2C_MODELS_DIR`, or a folder in `HF_HOME`."""
    return Path(os.environ.get("H2C_MODELS_DIR") or Path(constants.HF_HOME) / "h2c_models")


def read_origin(folder: Path) -> dict:
    """Return the note of `h2c models fetch` about a folder, {} for any other folder."""
    path = folder / ORIGIN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@dataclass(frozen=True)
class BaseModel:
    """A Sharer or a Receiver: the path of its files, and the id under which a bridge's config stores it.

    Make one with `find`.
    """

    path: str  # a folder or a Hub id
    model_id: str
    revision: str | None = None
    commit: str | None = None  # of the Hub repo that a fetched folder was downloaded from
    gguf_file: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def find(
        cls,
        name: str,
        role: str,
        revision: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
    ) -> "BaseModel":
        """Find a base model by name.

        Args:
            name: a Hub id, a folder, a .gguf file, 'atlas', or a name in `FETCHED`. The Hub id of a fetched
                model means the fetched folder, unless that has another revision than `revision`.
            role: "sharer" or "receiver".
            gguf_file: a GGUF file in that folder or repo.

        Raises:
            ValueError: for a name that is nothing of these, or a model that was not fetched yet.
        """
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        if name in BUNDLED:
            # Saved in a folder of the bridge's own repo.
            return cls(str(BUNDLED[name] / role), f"./{role}", **options)
        path = Path(name).expanduser()
        if path.is_file():
            if path.suffix != ".gguf" or gguf_file is not None:
                also = "" if gguf_file is None else f", and {role}_gguf_file is {gguf_file!r}"
                raise ValueError(
                    f"{role} is the file {name!r}{also}; expected a Hub id, a folder, or one .gguf file."
                )
            path, gguf_file = path.parent, path.name
        if gguf_file is not None:
            options["gguf_file"] = gguf_file
            if importlib.util.find_spec("gguf") is None:
                raise ValueError(
                    f"{role} is the GGUF file {gguf_file}, which needs gguf; install it with: "
                    f"{install('gguf')}"
                )
        if path.is_dir():
            if gguf_file is not None and not (path / gguf_file).is_file():
                raise ValueError(
                    f"{role}_gguf_file is {gguf_file!r}; expected a file in {path}, which holds none of this "
                    "name."
                )
            origin = {} if gguf_file else read_origin(path)
            folder = str(path.absolute())
            return cls(folder, origin.get("model_id", folder), commit=origin.get("revision"), **options)
        fetched = {**FETCHED, **{model_id: model_id for model_id in FETCHED.values()}}
        if name in fetched and gguf_file is None:
            short = next(short for short, model_id in FETCHED.items() if model_id == fetched[name])
            fetched_folder = models_dir() / short
            if fetched_folder.is_dir() and revision in (None, read_origin(fetched_folder).get("revision")):
                return cls.find(str(fetched_folder), role, None, None, trust_remote_code)
            if name in FETCHED:
                raise ValueError(
                    f"{role} is {name!r}, which is not in {models_dir()}; fetch it with: h2c models fetch "
                    f"{name}"
                )
        if not is_hub_id(name):
            raise ValueError(
                f"{role} is {name!r}, and there is no such folder or file; expected that, a Hub id, or "
                "'atlas'."
            )
        return cls(name, name, **options)

    def source(self) -> dict:
        """Return the arguments of any `from_pretrained` that say where the model is."""
        named = {"revision": self.revision, "gguf_file": self.gguf_file}
        given = {name: value for name, value in named.items() if value is not None}
        return {
            "pretrained_model_name_or_path": self.path,
            "trust_remote_code": self.trust_remote_code,
            **given,
        }

    def fields(self, role: str) -> dict:
        """Return the fields of `H2CBridgeConfig` that say where the model is."""
        return {f"{role}_model_id": self.model_id, f"{role}_gguf_file": self.gguf_file}

    def config(self) -> PreTrainedConfig:
        return self._with_commit(AutoConfig.from_pretrained(**self.source()))

    def tokenizer(self, chat_template: str | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer; `chat_template` is a file or a name in `CHAT_TEMPLATES`."""
        tokenizer = load_tokenizer(**self.source())
        return tokenizer if chat_template is None else set_chat_template(tokenizer, chat_template)

    def model(self, quantization: str = "none", **loading) -> PreTrainedModel:
        """Load the weights. Those of a GGUF file are dequantized.

        Args:
            quantization: "none", "nf4" or "int8" (bitsandbytes).
            loading: more arguments of `from_pretrained` (`dtype`, `device_map`, `attn_implementation` ...).
        """
        source = self.source()
        model = load(
            source.pop("pretrained_model_name_or_path"), **source, **quantized(quantization, self), **loading
        )
        self._with_commit(model.config)
        return model

    def _with_commit(self, config: PreTrainedConfig) -> PreTrainedConfig:
        if self.commit is not None:
            config._commit_hash = self.commit
        return record_commit(
            config, self.revision, **({"filename": self.gguf_file} if self.gguf_file else {})
        )


def quantized(quantization: str, model: BaseModel | None = None) -> dict:
    """Return the `quantization_config` argument of a `from_pretrained`.

    Raises:
        ValueError: for a GGUF file, which has its own quantization, or without bitsandbytes.
    """
    if quantization == "none":
        return {}
    if model is not None and model.gguf_file is not None:
        raise ValueError(
            f"quantization is {quantization!r} and the weights are in {model.gguf_file}; expected 'none' for "
            "a GGUF file."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantization is {quantization!r}, which needs bitsandbytes; install it with: {install('quant')}"
        )
    return {"quantization_config": BitsAndBytesConfig(**QUANTIZATION[quantization])}


def set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> PreTrainedTokenizerBase:
    """Give a tokenizer a chat template, which is saved with it.

    Args:
        chat_template: a Jinja file, or a name in `CHAT_TEMPLATES`. "plain" begins with the bos token if the
            tokenizer itself puts it in front of a text, as Gemma's does: templates are encoded without added
            special tokens. "spaced" is the tokenizer's own template with a space before every answer.

    Raises:
        ValueError: if there is no such file, or for "spaced" without a template, or with one that takes the
            space away.
    """
    if chat_template == "spaced":
        tokenizer.chat_template = spaced(tokenizer)
    elif chat_template in CHAT_TEMPLATES:
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [
            tokenizer.bos_token_id
        ]
        tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + CHAT_TEMPLATES[chat_template]
    elif Path(chat_template).is_file():
        tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"There is no chat template {chat_template!r}; expected a Jinja file, or one of "
            f"{', '.join(CHAT_TEMPLATES)}."
        )
    return tokenizer


def spaced(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer's chat template with a space before every answer; one that has it stays as it is.

    Raises:
        ValueError: without a template, or with one that takes the space away.
    """
    own = tokenizer.chat_template
    if isinstance(own, str):
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        before, after = (
            tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
            for template in (own, SPACED + own)
        )
        if " answer" in before:
            return own
        if after == before.replace("answer", " answer"):
            return SPACED + own
    raise ValueError(
        f"The chat template 'spaced' puts a space before every answer of the tokenizer's own template, and "
        f"{tokenizer.name_or_path} has {'none' if own is None else 'one that takes it away'}; expected a "
        "Jinja file."
    )


def load_pair(
    bridge: str,
    revision: str | None = None,
    sharer_chat_template: str | None = None,
    receiver_chat_template: str | None = None,
    chat_template_kwargs: dict | str | None = None,
    **loading,
) -> tuple[H2CForCausalLM, H2CProcessor]:
    """Load a trained bridge with its two base models, and its processor.

    Args:
        bridge, revision: the bridge's folder or Hub id, or "atlas" (in the package); and its commit.
        sharer_chat_template, receiver_chat_template: instead of the tokenizers' own; see `set_chat_template`.
        chat_template_kwargs: variables of both chat templates, as a mapping or its JSON, over those of the
            saved processor.
        loading: more arguments of `load_model`.

    Returns:
        The model in eval mode, and the processor.
    """
    model = load_model(bridge, revision, **loading)
    if bridge in BUNDLED:
        processor = H2CProcessor(*(BaseModel.find(bridge, role).tokenizer() for role in ROLES))
    else:
        processor = H2CProcessor.from_pretrained(bridge, revision=revision)
    for role, chat_template in (("sharer", sharer_chat_template), ("receiver", receiver_chat_template)):
        if chat_template is not None:
            set_chat_template(getattr(processor, f"{role}_tokenizer"), chat_template)
    set_template_kwargs(processor, read_template_kwargs(chat_template_kwargs))
    return model, processor


def opened(repo: str | None, revision: str | None = None, **options) -> tuple[H2CForCausalLM, H2CProcessor]:
    """Load bridge, models and processor onto the GPU, or the CPU without one. Without a repo: Atlas, in fp32.

    Args:
        options: of `load_pair`.

    Raises:
        OSError: if there is no such repo or folder, in one sentence.
        ValueError: for a revision of a folder.
    """
    if revision is not None and (repo is None or os.path.isdir(repo)):
        raise ValueError(
            f"--revision is {revision!r}, and {repo or 'Atlas'} is a folder; expected a revision with a Hub "
            "id only."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    placed: dict[str, Any] = (
        {} if importlib.util.find_spec("accelerate") is None else {"device_map": {"": device}}
    )
    dtype = "auto" if repo else torch.float32
    model, processor = load_pair(repo or "atlas", revision, dtype=dtype, **placed, **options)
    return (model if placed else model.to(device)), processor


def load_model(
    bridge: str,
    revision: str | None = None,
    sharer: str | None = None,
    receiver: str | None = None,
    sharer_gguf_file: str | None = None,
    receiver_gguf_file: str | None = None,
    sharer_quantization: str = "none",
    trust_remote_code: bool = False,
    **loading,
) -> H2CForCausalLM:
    """Load a trained bridge with its two base models, in eval mode.

    Args:
        bridge, revision: see `load_pair`.
        sharer, receiver: base models instead of those that the bridge's config names; see `BaseModel.find`. A
            model that `h2c models fetch` got is loaded from there.
        sharer_gguf_file, receiver_gguf_file: GGUF files in those.
        sharer_quantization: "none", "nf4" or "int8".
        trust_remote_code: let the base models run code from their repos.
        loading: more arguments of `H2CForCausalLM.from_pretrained` (`dtype`, `device_map`,
            `attn_implementation` ...). Without a `dtype`, or with "auto", that of the weights, but float32 on
            a CPU that emulates bfloat16.
    """
    loading["dtype"] = loaded_dtype(loading.get("dtype"))
    if bridge in BUNDLED:
        bridge, sharer, receiver = str(BUNDLED[bridge] / "bridge"), sharer or bridge, receiver or bridge
    with naming("bridge", bridge):
        config = H2CBridgeConfig.from_pretrained(bridge, revision=revision)
    given = {"sharer": (sharer, sharer_gguf_file), "receiver": (receiver, receiver_gguf_file)}
    shared = {name: loading[name] for name in BASE_ARGUMENTS if loading.get(name) is not None}
    arguments = {"revision": revision, **loading}
    for role, (name, gguf_file) in given.items():
        if name is None and gguf_file is not None:
            raise ValueError(
                f"{role}_gguf_file is {gguf_file!r} without a {role}; expected the folder or Hub id that "
                "holds it."
            )
        quantization = sharer_quantization if role == "sharer" else "none"
        base: BaseModel | None
        if name is not None:
            base = BaseModel.find(name, role, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
        else:
            base = fetched_base(config, role, trust_remote_code)
        if base is None:  # `from_pretrained` knows where it is
            code = {"trust_remote_code": True} if trust_remote_code else {}
            arguments[f"{role}_kwargs"] = {
                **code,
                **quantized(quantization),
                **loading.get(f"{role}_kwargs", {}),
            }
            continue
        with naming(role.capitalize(), name or getattr(config, f"{role}_model_id")):
            arguments[role] = base.model(
                quantization, **{"dtype": "auto", **shared, **arguments.pop(f"{role}_kwargs", {})}
            )
    if "sharer" in arguments and "receiver" in arguments:
        arguments.pop("device_map", None)  # both are where it says; the bridge goes where the Receiver is
    try:
        return H2CForCausalLM.from_pretrained(
            bridge, **{name: value for name, value in arguments.items() if value is not None}
        ).eval()
    except OSError:
        name_missing_model(config, {name: shared[name] for name in HUB_ARGUMENTS if name in shared})
        raise


def fetched_base(config: H2CBridgeConfig, role: str, trust_remote_code: bool = False) -> BaseModel | None:
    """Return the base model that a bridge's config names, if `h2c models fetch` knows it; else None."""
    model_id = getattr(config, f"{role}_model_id")
    if model_id not in FETCHED.values() or getattr(config, f"{role}_gguf_file") is not None:
        return None
    return BaseModel.find(
        model_id, role, getattr(config, f"{role}_revision"), trust_remote_code=trust_remote_code
    )


def name_missing_model(config: H2CBridgeConfig, hub: dict) -> None:
    """Raise an OSError that names the base model of a bridge's config that cannot be loaded, if there is one.

    Args:
        hub: more arguments of any `from_pretrained` (`cache_dir`, `token` ...).
    """
    for role in ROLES:
        model_id = getattr(config, f"{role}_model_id")
        if model_id and is_hub_id(model_id) and getattr(config, f"{role}_gguf_file") is None:
            with naming(role.capitalize(), model_id):
                cached_file(model_id, "config.json", revision=getattr(config, f"{role}_revision"), **hub)
