"""Several bridges for one pair on one loaded model, swapped as PEFT swaps adapters."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import PreTrainedModel

from .configuration_h2c import HUB_ARGUMENTS, H2CBridgeConfig
from .modeling_h2c_bridge import H2CBridgeModel


class BridgesMixin:
    """`load_bridge`, `set_bridge` and `disable_bridge` of `H2CForCausalLM`.

    `self.bridge` is the active one, and the only one that is a part of the module tree: parameters, state
    dicts, checkpoints and saved files are those of a model that has no other. `self.config` is its config.
    """

    config: H2CBridgeConfig
    bridge: H2CBridgeModel
    sharer: PreTrainedModel | None
    receiver: PreTrainedModel
    training: bool

    def _init_bridges(self) -> None:
        self._active_bridge, self._bridge_disabled = "default", False
        self._idle_bridges: dict[str, H2CBridgeModel] = {}

    @property
    def active_bridge(self) -> str:
        """The name of the bridge in use; "default" is the one that the model was made with."""
        return self._active_bridge

    @property
    def bridge_names(self) -> list[str]:
        """The names of all that are loaded, the active one first."""
        return [self._active_bridge, *self._idle_bridges]

    def load_bridge(
        self, pretrained_model_name_or_path, bridge_name: str, strict_revisions: bool = False, **kwargs
    ) -> None:
        """Load another bridge for the same pair, beside the active one: `set_bridge` makes it the one in use.

        Args:
            pretrained_model_name_or_path: its repo or folder.
            bridge_name: a new name for it.
            strict_revisions: refuse, rather than warn of, another revision of a base model than the bridge
                was trained on.
            kwargs: as for any model (`revision`, `subfolder`, `cache_dir`, `token`, `local_files_only` ...).
                `dtype` is by default the active bridge's.

        Raises:
            ValueError: for a name that is taken, or a bridge for another pair, before its weights are
                fetched.
        """
        if bridge_name in self.bridge_names:
            raise ValueError(
                f"There is a bridge {bridge_name!r} already; expected a name other than "
                f"{', '.join(self.bridge_names)}."
            )
        where = {name: kwargs[name] for name in ("revision", "subfolder", *HUB_ARGUMENTS) if name in kwargs}
        config = H2CBridgeConfig.from_pretrained(pretrained_model_name_or_path, **where)
        config.check_shapes(self.config)
        for role, model in (("sharer", self.sharer), ("receiver", self.receiver)):
            expected, got = (getattr(bridge, f"{role}_model_id") for bridge in (self.config, config))
            if expected != got and is_hub_id(expected) and is_hub_id(got):
                raise ValueError(
                    f"This bridge does not fit: it was trained for the {role} {got}, and the active one for "
                    f"{expected}."
                )
            # Of a Sharer that is not in memory, the commit is known from the bridge that came with it.
            commit = (
                getattr(self.config, f"{role}_revision")
                if model is None
                else getattr(model.config, "_commit_hash", None)
            )
            config.check_revision(role, commit, strict_revisions)
        kwargs = {"config": config, "dtype": self.bridge.dtype, **kwargs}
        bridge = H2CBridgeModel.from_pretrained(pretrained_model_name_or_path, **kwargs)
        self._idle_bridges[bridge_name] = bridge.to(self.bridge.device).requires_grad_(False)

    def set_bridge(self, bridge_name: str) -> None:
        """Make a loaded bridge the one that is used, trained and saved. The generation config stays as it is.

        Raises:
            ValueError: for a name that is not loaded.
        """
        if bridge_name not in self.bridge_names:
            raise ValueError(
                f"There is no bridge {bridge_name!r}; expected one of {', '.join(self.bridge_names)}."
            )
        if bridge_name != self._active_bridge:
            self._idle_bridges[self._active_bridge] = self.bridge.eval().requires_grad_(False)
            self.bridge = self._idle_bridges.pop(bridge_name).train(self.training).requires_grad_(True)
            self.config, self._active_bridge = self.bridge.config, bridge_name

    @contextlib.contextmanager
    def disable_bridge(self) -> Iterator[None]:
        """Inside, the Receiver answers alone, as it does without this model; the Sharer is not run. For the
        model as a whole, in every thread."""
        before, self._bridge_disabled = self._bridge_disabled, True
        try:
            yield
        finally:
            self._bridge_disabled = before

    def _apply(self, fn: Callable, recurse: bool = True):
        """`to`, `cuda`, `float` and their like: of all bridges."""
        for bridge in self._idle_bridges.values():
            bridge._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[misc]  # of `torch.nn.Module`


def is_hub_id(model_id: str | None) -> bool:
    """Return whether a name is a Hub id, which names the same model everywhere, and not a folder."""
    return (
        model_id is not None
        and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model_id) is not None
        and not Path(model_id).is_dir()
    )


__all__ = ["BridgesMixin"]
