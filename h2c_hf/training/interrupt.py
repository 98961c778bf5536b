"""Ctrl-C in a training run: save a checkpoint after the step, as SIGTERM does."""

import os
import signal

from transformers import Trainer
from transformers.trainer_jit_checkpoint import JITCheckpointCallback


MESSAGE = (
    "\nCtrl-C: saving a checkpoint after this step (or evaluation). Press it again to stop without one.\n"
)


class SaveOnInterrupt:
    """Context in which the first Ctrl-C ends the run with a checkpoint, and the second at once.

    `interrupted` says whether there was a first one. Without `enable_jit_checkpoint`, and with several
    processes, which would stop at different steps and wait for one another, Ctrl-C stays as it is.
    """

    def __init__(self, trainer: Trainer):
        callbacks = trainer.callback_handler.callbacks
        self.managers = [
            callback.jit_manager for callback in callbacks if isinstance(callback, JITCheckpointCallback)
        ]
        self.active = (
            bool(self.managers) and trainer.args.enable_jit_checkpoint and trainer.args.world_size == 1
        )
        self.interrupted = False

    def __enter__(self) -> "SaveOnInterrupt":
        if self.active:
            self.handler = signal.signal(signal.SIGINT, self.request)
        return self

    def __exit__(self, *exception) -> None:
        if self.active:
            signal.signal(signal.SIGINT, self.handler)

    def request(self, signum, frame) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.interrupted = True
        os.write(2, MESSAGE.encode())  # no print: the signal may have come inside of one
        for manager in self.managers:
            manager.is_checkpoint_requested = True
