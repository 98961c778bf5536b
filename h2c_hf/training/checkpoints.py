"""Checkpoints that are whole or not there, whatever ends the run while one is written."""

import glob
import os
import shutil
import warnings

from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints


class WholeCheckpoints(Trainer):
    """A `Trainer` that writes each checkpoint beside its place and renames it when it is complete.

    The stock Trainer writes file by file into `checkpoint-N` itself: a kill in between, or a full disk,
    leaves half a checkpoint, which `resume_from_checkpoint=True` then takes for the last one. So `save` is
    told to write into a staging folder, and the stock method's work after writing (push, delete old
    checkpoints) is done after the rename.
    """

    _staging: str | None = None

    def train(self, *args, **kwargs):
        if self.args.should_save:
            for half in glob.glob(
                os.path.join(glob.escape(self.args.output_dir), f"_{PREFIX_CHECKPOINT_DIR}-*.part")
            ):
                shutil.rmtree(half, ignore_errors=True)  # what a killed run was writing
        return super().train(*args, **kwargs)

    def _get_output_dir(self, trial) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final = os.path.join(run_dir, name)
        # A name that starts with "_" is left out of what the Trainer pushes.
        staging = os.path.join(run_dir, f"_{name}.part")
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            with warnings.catch_warnings():
                # Base models in a bridge's own folder are saved once, with the trained bridge.
                warnings.filterwarnings("ignore", r"(sharer|receiver)_model_id is '\./")
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._put_in_place(os.path.join(staging, name), final)
            self.accelerator.wait_for_everyone()
        # torch and safetensors have errors of their own for a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise OSError(self._what_is_left(run_dir, name, error)) from error
        finally:
            self._staging = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(final)
        if self.args.should_save:
            rotate_checkpoints(
                run_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )

    def _put_in_place(self, written: str, final: str) -> None:
        if self.state.best_model_checkpoint == written:
            self.state.best_model_checkpoint = final
            self.state.save_to_json(os.path.join(written, TRAINER_STATE_NAME))
        shutil.rmtree(final, ignore_errors=True)  # a checkpoint of this step that an earlier run left
        os.rename(written, final)
        os.rmdir(os.path.dirname(written))

    def _what_is_left(self, run_dir: str, name: str, error: Exception) -> str:
        last = get_last_checkpoint(run_dir)
        left = f"the last complete checkpoint is {last}" if last else "there is no earlier checkpoint"
        free = shutil.disk_usage(run_dir).free
        reason = " ".join(str(error).split())
        return f"{name} could not be saved in {run_dir} ({free / 1e6:.1f} MB free): {reason}; {left}."

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is not None:  # pushed after the rename
            return
        # With `hub_always_push` the stock method writes into the folder that an upload still reads, and a
        # file that was half written would be pushed.
        if self.args.hub_always_push and self.push_in_progress is not None:
            self.push_in_progress.wait_until_done()
        # The stock method pushes the weights with every save but the remote code and the card at the end
        # only: what is on the Hub in between could not be loaded, and would not say what it is.
        for file in os.listdir(checkpoint_folder):
            if file.endswith(".py"):
                shutil.copyfile(
                    os.path.join(checkpoint_folder, file), os.path.join(self.args.output_dir, file)
                )
        self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)
