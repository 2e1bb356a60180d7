"""Writes checkpoints with published weight names, and continues from them exactly, to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import TrainOutput

from videollama2.checkpoints import load_checkpoint, load_connector
from videollama2.checkpoints.audio_tower import load_audio_weights, read_audio_weights
from videollama2.checkpoints.connector import load_audio_connector
from videollama2.checkpoints.files import ADAPTER_CONFIG, AUDIO_CONNECTOR_FILE, AUDIO_TOWER_FILE, CONNECTOR_FILE
from videollama2.checkpoints.lora import has_lora, load_adapter
from videollama2.checkpoints.write import save_lora, save_model, save_parts
from videollama2.errors import DataError, VideoLlama2Error
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor
from videollama2.training.distributed.fully_shard import (
    load_optimizer,
    load_whole_state,
    save_optimizer,
    set_gradient_sync,
    whole_state,
    whole_tensor,
)
from videollama2.training.distributed.sharding import keep_frozen_out, load_engine
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.run.folder import write_record
from videollama2.training.run.identity import RunIdentity
from videollama2.training.run.stopping import (
    FAILED,
    Agreement,
    RandomState,
    StoppedBySignalError,
    StoppedElsewhereError,
    StopSignals,
    end_workers,
    message_of,
)
from videollama2.training.run.whole_checkpoints import explain_failed_save, explain_unreadable, write_sizes


class SavingTrainer(Trainer):
    """The part of the trainer that saves the model, stops early and resumes.

    Args:
        base: name of the model for which parts or an adapter are trained; it is written beside these.
        parts_alone: the parts to write instead of a whole model, see :func:`videollama2.checkpoints.write.save_parts`.
        identity: identity of the run, which is written to every checkpoint.
        signals: the signals received; the run stops after the current step once there is one.
        args, kwargs: arguments of :class:`transformers.Trainer`; ``processing_class`` is the model's processor.
    """

    args: TrainingArguments
    model: VideoLlama2ForConditionalGeneration

    def __init__(
        self,
        *args: Any,
        base: str = "",
        parts_alone: tuple[str, ...] = (),
        identity: RunIdentity | None = None,
        signals: StopSignals | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # What transformers has no wrapper for: the model is sharded already, and is neither wrapped nor moved.
        self.is_distributed_loading_by_transformers = self.args.fully_shard
        self.base = base
        self.parts_alone = parts_alone
        self.identity = identity
        self.signals = signals or StopSignals()
        self.agreement = Agreement()
        self.resumed: str | None = None
        self.saved_step = 0
        self.loaders: list[DataLoader] = []
        """Loaders of the run, whose worker processes end with it."""
        self.epoch_start: RandomState | None = None
        """The random state from before the current epoch, or None after the epoch's first step."""

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Return the accelerator's options, without compilation, see :mod:`videollama2.training.model.compiled`."""
        options = super()._build_accelerator_args(**kwargs)
        options.pop("dynamo_plugin", None)
        return options

    def unwrapped(self, model: nn.Module | None = None) -> VideoLlama2ForConditionalGeneration:
        """Return the model (or ``model``) without what a distributed run wraps around it."""
        return cast(
            "VideoLlama2ForConditionalGeneration", self.accelerator.unwrap_model(self.model if model is None else model)
        )

    def wrapped(self) -> nn.Module:
        """Return the model with what a distributed run wraps around it."""
        assert self.model_wrapped is not None
        return self.model_wrapped

    # -------------------------------------------------------------------------------------------- stopping

    # Only a folder is given here, and further arguments by name.
    def train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, resume_from_checkpoint: str | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train as transformers does, but end progress bars and loader workers also if an error or a signal comes."""
        self.resumed = resume_from_checkpoint
        failure = None
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            self.stop_where_agreed()  # a signal may have come during the last step
            return output
        except BaseException as error:
            failure = error
            raise
        finally:
            end_workers(self.loaders, failure)
            failure = None  # or the error would refer to itself through this frame
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                    callback.training_bar.close()

    def stop_where_agreed(self, error: Exception | None = None) -> None:
        """Write a checkpoint and leave the loop if any process has received a signal or has failed with an ``error``.

        Every process must call this before each step. It returns if no process wants to stop, or for the caller to
        raise ``error`` itself.

        Raises:
            StoppedBySignalError: on all processes, after a signal.
            StoppedElsewhereError: on the other processes, if one of them has failed.
            DataError: in place of ``error``, with the checkpoint's name.
        """
        # One number from each process: 0 to go on, a signal's number to stop, FAILED above all signals. All processes
        # then do what the largest says.
        code = self.agreement.largest(FAILED if error else self.signals.number)
        if not code:
            return
        checkpoint = self._save_what_was_learnt()
        step = self.state.global_step
        if isinstance(error, VideoLlama2Error) and checkpoint:
            raise DataError(f"{message_of(error)}; {checkpoint} holds what was learnt up to step {step}") from error
        if code == FAILED:
            if error is None:
                raise StoppedElsewhereError
            return
        raise StoppedBySignalError(code, step, checkpoint)

    def _save_what_was_learnt(self) -> str | None:
        """Write a checkpoint of the last whole step, unless there is one, and return its folder (None at step 0)."""
        step = self.state.global_step
        if step == 0:
            return None
        # Nothing was learnt since the checkpoint that the run was resumed from.
        if step == self._initial_global_step and self.resumed:
            return self.resumed
        folder = self.args.output_folder / f"checkpoint-{step}"
        if step != self.saved_step:
            if self.epoch_start is not None:
                # Beginning this epoch has drawn a random number, and the continued run will begin it, and draw, again.
                self.epoch_start.restore()
            self.args.save_only_model = False  # continuing needs the optimizer state as well
            self._save_checkpoint(self.wrapped(), None)
        return str(folder)

    # ---------------------------------------------------------------------------------------------- saving

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write a folder that can be loaded as a model; unlike transformers, do not pickle the arguments."""
        if self.args.fully_shard:
            state_dict = whole_state(self.model)
        if not self.args.should_save:
            return
        folder = Path(output_dir) if output_dir else self.args.output_folder
        model, processor = self.unwrapped(), cast("VideoLlama2Processor", self.processing_class)
        is_result = folder == self.args.output_folder
        with explain_failed_save(folder, remove=False) if is_result else nullcontext():
            if self.parts_alone:
                save_parts(model, processor, folder, self.base, self.parts_alone, state_dict)
            elif has_lora(model):
                save_lora(model, processor, folder, self.base, state_dict)
            else:
                # A checkpoint keeps all bits, which continuing exactly needs; the result has the dtype of computation.
                dtype = torch.bfloat16 if is_result and self.args.bf16 else None
                save_model(model, processor, folder, state_dict, dtype)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self.args.output_folder / f"checkpoint-{self.state.global_step}"
        # The files of an earlier run there would make this checkpoint look whole before it is.
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with explain_failed_save(folder, remove=self.args.should_save):
            super()._save_checkpoint(model, trial)
        self.saved_step = self.state.global_step

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.fully_shard:  # transformers has written the first process's slices
            path = Path(output_dir) / OPTIMIZER_NAME
            save_optimizer(self.model, self._plain_optimizer(), path, self.args.should_save)

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return cast("Any", self.optimizer).optimizer  # without what accelerate has put around it

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Reduce no gradients inside the block; transformers would look for a configuration of its own sharding."""
        set_gradient_sync(self.model, False)
        try:
            yield
        finally:
            set_gradient_sync(self.model, True)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return whole_tensor(super()._clip_grad_norm(model))

    def _save_rng_state(self, output_dir: str) -> None:
        """Write the random state, which is each process's last part of a checkpoint, then the sizes and the record.

        transformers writes ``trainer_state.json``, the file that makes a checkpoint whole, after this.
        """
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_sizes(Path(output_dir))
            if self.identity is not None:
                write_record(Path(output_dir), self.identity)

    # -------------------------------------------------------------------------------------------- resuming

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader]:
        """Prepare model and loader; under DeepSpeed, also leave frozen weights out of checkpoints.

        transformers leaves them out for peft's own model classes only, and its way of loading expects them. Under
        DeepSpeed the checkpoint is therefore not passed to transformers but loaded here.
        """
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        keep_frozen_out(self.model_wrapped)
        if resume_from_checkpoint is not None:
            load_engine(self.model_wrapped, resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with explain_unreadable(checkpoint):
            if self.args.fully_shard and checkpoint is not None:
                load_optimizer(self.model, self._plain_optimizer(), Path(checkpoint) / OPTIMIZER_NAME)
                schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
                cast("Any", self.lr_scheduler).load_state_dict(schedule)
            else:
                super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with explain_unreadable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read weights by their published names.

        transformers would look for the names in memory, find none of the renamed weights on disk and continue with a
        warning, so that a resumed run would start from the base model.
        """
        # The model has its layers, adapters and dtypes by now; only values are read into it.
        target = self.unwrapped(model)
        with explain_unreadable(resume_from_checkpoint):
            self._read_weights(target, Path(resume_from_checkpoint))

    def _read_weights(self, target: VideoLlama2ForConditionalGeneration, folder: Path) -> None:
        if (folder / ADAPTER_CONFIG).is_file():
            load_adapter(target, folder)
        elif self.parts_alone:
            self._read_parts(target, folder)
        else:
            # The checkpoint has float32 weights, which learn, and frozen weights with fewer bits.
            saved, _ = load_checkpoint(folder, dtype=torch.float32)
            load = load_whole_state if self.args.fully_shard else nn.Module.load_state_dict
            load(target, saved.state_dict())

    def _read_parts(self, target: VideoLlama2ForConditionalGeneration, folder: Path) -> None:
        if "mm_projector" in self.parts_alone:
            load_connector(target, folder / CONNECTOR_FILE)
        if "mm_projector_a" in self.parts_alone:
            load_audio_connector(target, folder / AUDIO_CONNECTOR_FILE)
        if "audio_tower" in self.parts_alone:
            tower, file = target.model.audio_tower, folder / AUDIO_TOWER_FILE
            assert tower is not None  # it is one of the parts to save
            load_audio_weights(tower, read_audio_weights(file), str(file))

    def _load_best_model(self) -> None:
        """Read the weights of the best checkpoint, for ``load_best_model_at_end``."""
        best = self.state.best_model_checkpoint
        assert best is not None  # transformers asks for it after an evaluation only
        if self.is_deepspeed_enabled:
            load_engine(self.model_wrapped, best)
        else:
            self._load_from_checkpoint(best)
