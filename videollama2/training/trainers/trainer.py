"""Trains: learning rates of parts, the order of samples, counting, evaluation and logging of ``train.py``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, cast

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState

from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.order.mixture import Mixture, PhasedDraw
from videollama2.data.order.sampler import InOrderSampler, JointSampler, MixtureSampler, ModalityLengthSampler
from videollama2.data.packing import PackedRows
from videollama2.data.record import Record
from videollama2.data.stream import StreamedRecords
from videollama2.errors import VideoLlama2Error
from videollama2.training.joint import Joint
from videollama2.training.model.recompute import RecomputeChoice
from videollama2.training.reports.clock import PARTS, StepClock
from videollama2.training.reports.meter import COUNTS, Collate, CountingCollator, Meter, peak_flops
from videollama2.training.run.stopping import RandomState, shield_workers
from videollama2.training.trainers.eval_loss import sums_over
from videollama2.training.trainers.optimizing import OptimizingTrainer

BAD_SAMPLES_FILE = "bad_samples-{process}.jsonl"


class VideoLlama2Trainer(OptimizingTrainer):
    """The trainer of ``train.py``.

    Args:
        mixture: the sets that ``train_dataset`` consists of; None for a single one.
        joint: groups of the records of joint training; None for an order that does not depend on sound.
        args, kwargs: arguments of :class:`~videollama2.training.asking.trainer.AskingTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        mixture: Mixture | None = None,
        joint: Joint | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.joint = joint
        self.sets: Sequence[Sequence[Record]] = ()
        """The records of each annotation file, for the report."""
        self.order: MixtureSampler | None = None
        self.steps_of_line = 0
        self.learnt_steps: torch.Tensor | int = 0
        self.add_callback(_EpochStart(self))
        self.add_callback(RecomputeChoice(self.model))
        self.mixture = mixture
        self.meter = Meter(self.model)
        self.clock = StepClock(self.model, self.args.device)
        self.add_callback(_OptimizerTime(self.clock))
        self.bad_samples: set[str] = set()
        # transformers sets use_cache in the outer configuration, but the decoder reads its own configuration.
        self.model.config.text_config.use_cache = self.args.use_cache

    # ------------------------------------------------------------------------------------------------ order

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, StreamedRecords):
            # Every process reads all records, so the first one alone lists those that are left out.
            if dataset.skip_bad:
                dataset.order.problem = self.note_bad if self.args.process_index == 0 else lambda message: None
            return dataset.order
        if self.args.train_sampling_strategy != "random" or not isinstance(
            dataset, VideoInstructionDataset | PackedRows
        ):
            return super()._get_train_sampler(train_dataset)
        mixture = self.mixture or Mixture([len(dataset)])
        together = self.args.train_batch_size * self.args.world_size
        of_step = together * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        options = {
            "sizes": mixture.sizes,
            "weights": mixture.weights,
            "multiple": together,
            "seed": seed,
            "phased": PhasedDraw(mixture, of_step, len(dataset), seed) if mixture.phases else None,
        }
        if self.joint is not None:
            self.order = JointSampler(self.joint.groups, self.joint.ratio, len(dataset), together, seed)
        elif self.args.group_by_modality_length:
            assert isinstance(dataset, VideoInstructionDataset)  # this flag is refused beside --packing
            self.order = ModalityLengthSampler(
                lengths=dataset.lengths,
                visual=[length > 0 for length in dataset.media_lengths],
                batch_size=of_step,
                **options,
            )
        else:
            self.order = MixtureSampler(**options)
        return self.order

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        return InOrderSampler(len(cast("Sized", eval_dataset)), self.args.eval_batch_size * self.args.world_size)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's loader wraps one of torch
        shield_workers(inner)
        self.loaders.append(inner)
        inner.collate_fn = CountingCollator(cast("Collate", inner.collate_fn), self.model.config)
        return loader

    # ------------------------------------------------------------------------------------------------- step

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Return the micro-batches of a step and the number of labels in them over all processes."""
        self._seed_layer_drop()
        self.meter.begin()
        begin = time.perf_counter()
        batches = self._fetch(epoch_iterator, num_batches)
        self.meter.counts.waited += time.perf_counter() - begin
        for batch in batches:
            self._note_bad(batch)
            self.meter.add(batch)
        batches, labels = super().get_batch_samples(iter(batches), num_batches, device)
        self.steps_of_line += 1
        assert labels is not None  # the model's loss wants their number
        self.learnt_steps = self.learnt_steps + (labels > 0)  # a tensor on the GPU, read when a line is logged
        # If all records of a step were left out, its loss must be 0 and not 0 / 0; see _without_empty_steps.
        return batches, labels.clamp(min=1) if torch.is_tensor(labels) else labels

    def _seed_layer_drop(self) -> None:
        """Let all processes and micro-batches of a step skip the same layers of the audio encoder.

        Otherwise a run would depend on how its batches are split, and processes under DeepSpeed would run different
        modules.
        """
        tower = self.unwrapped().model.audio_tower
        if tower is not None:
            tower.encoder.drop_seed = self.args.seed + self.state.global_step

    def _fetch(self, epoch_iterator: Iterator, num_batches: int) -> list[dict[str, Any]]:
        """Return the next micro-batches, unless the processes agree to stop before this step."""
        try:
            batches = list(islice(epoch_iterator, num_batches))
        except (VideoLlama2Error, OSError, RuntimeError) as error:
            self.stop_where_agreed(error)
            raise
        self.stop_where_agreed()
        return batches

    def _note_bad(self, batch: dict[str, Any]) -> None:
        """Remove the list of records that were left out from the batch and write them to the output folder."""
        for message in batch.pop("bad_samples", ()):
            self.note_bad(message)

    def note_bad(self, message: str) -> None:
        """Write one record that was left out to this process's list in the output folder, unless it is there."""
        if message in self.bad_samples:
            return
        self.bad_samples.add(message)
        folder = self.args.output_folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / BAD_SAMPLES_FILE.format(process=self.args.process_index)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.state.global_step, "problem": message}) + "\n")

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run one forward and backward pass, and measure what part of it takes how long."""
        self.clock.start()
        loss = super().training_step(*args, **kwargs)
        self.clock.stop()
        return loss

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, DataLoader]:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_deepspeed_enabled:  # its optimizer runs within the backward pass
            self.clock.time_calls(self.model_wrapped, "step", "optimizer")
        return prepared

    def counted_over_processes(self, count: torch.Tensor) -> torch.Tensor:
        """Return the number of a step's items over all processes, or of this one's if each averages over its own."""
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            return cast("torch.Tensor", self.accelerator.gather(count)).sum()
        return count

    def share_of_step(self, total: torch.Tensor, items_of_step: torch.Tensor | int | None) -> torch.Tensor:
        """Return what a micro-batch whose items' losses sum to ``total`` adds to the mean over the items of a step."""
        assert items_of_step is not None
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total / items_of_step * processes  # DDP averages gradients over processes

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as the base class does, and leave the time that it takes out of the step's rates."""
        begin = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self.meter.started += time.perf_counter() - begin

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add rates, waiting, memory and the parts' learning rates to a step's log line (a collective operation)."""
        if "loss" in logs:
            device = self.args.device
            gather = cast("Callable[[torch.Tensor], torch.Tensor]", self.accelerator.gather)
            logs.update(self.meter.rates(gather(self.meter.totals(device)), peak_flops(device)))
            logs.update(self._shares_of_parts(gather))
            logs.update(self._part_rates(logs.get("learning_rate", 0.0)))
            left_out = gather(torch.tensor([len(self.bad_samples)], device=device)).sum().item()
            if left_out:
                logs["bad_samples"] = left_out
            logs["hours_left"] = self._hours_left()
            self._without_empty_steps(logs)
            self.meter.restart()
        super().log(logs, start_time)

    def _shares_of_parts(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the shares of the time since the last log line in which a step's parts were computed (collective)."""
        elapsed = max(time.perf_counter() - self.meter.started, 1e-9)
        mine = torch.tensor([self.clock.totals()], device=self.args.device) / elapsed
        shares = gather(mine).mean(dim=0).tolist()
        return {f"{part}_share": float(f"{share:.4g}") for part, share in zip(PARTS, shares, strict=True)}

    def _hours_left(self) -> float:
        """Return the hours that the steps to come will take at the speed since the last log line."""
        seconds = (time.perf_counter() - self.meter.started) / max(self.steps_of_line, 1)
        return float(f"{seconds * (self.state.max_steps - self.state.global_step) / 3600:.3g}")

    def _without_empty_steps(self, logs: dict[str, float]) -> None:
        """Make the line's loss the mean over the steps that had labels; without such steps, remove the loss."""
        if learnt := int(self.learnt_steps):
            logs["loss"] *= self.steps_of_line / learnt
        else:
            del logs["loss"]
            logs.pop("grad_norm", None)
        self.steps_of_line, self.learnt_steps = 0, 0

    def _part_rates(self, rate: float) -> dict[str, float]:
        """Return the current learning rates of parts that have their own; the schedule scales all rates alike."""
        # The log has the first group's current rate. The schedule multiplies all rates by the same factor, so a part's
        # rate is to its initial rate as the logged one is to that of the first group.
        groups = cast("torch.optim.Optimizer", self.optimizer).param_groups
        first = groups[0].get("initial_lr")
        if not first:
            return {}
        return {g["part"]: rate * g["initial_lr"] / first for g in groups if "part" in g and "initial_lr" in g}

    # ------------------------------------------------------------------------------------------- evaluation

    # train.py has one evaluation set at most.
    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the loss per label and the share of right answers, and ask benchmarks and sample questions."""
        begin = time.perf_counter()
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        found = self.together(lambda: self._loss_on(dataset)) if len(cast("Sized", dataset)) else {}
        found |= self.ask()
        found["runtime"] = round(time.perf_counter() - begin, 3)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.started += time.perf_counter() - begin
        return metrics

    def _loss_on(self, dataset: Any) -> dict[str, float]:
        """Return the loss per label, the share of right answers, and the number of answers.

        Sums are divided once at the end, so the values do not depend on batch size or number of processes.
        """
        model = self.wrapped() if self.is_deepspeed_enabled else self.model
        batches = map(self._for_evaluation, self.until_stopped(self.get_eval_dataloader(dataset)))
        sums = self.accelerator.reduce(sums_over(model, batches, self.args.device), "sum")
        loss, labels, right, answers = cast("torch.Tensor", sums).tolist()
        return {"loss": loss / max(labels, 1), "answer_accuracy": right / max(answers, 1), "answers": answers}

    def _for_evaluation(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._note_bad(batch)
        batch.pop(COUNTS)
        return self._prepare_inputs(batch)


class _EpochStart(TrainerCallback):
    """A callback that gives the sampler the number of the epoch and keeps the random state from before the epoch.

    transformers gives the epoch to the loader only. If a run of several processes is resumed in the middle of an epoch,
    that loader is wrapped again to skip the samples already seen, and without this callback the sampler inside would
    draw the order of the first epoch. The random state is kept until the epoch's first step is done, see
    :meth:`~videollama2.training.run.saving.SavingTrainer._save_what_was_learnt`.
    """

    def __init__(self, trainer: VideoLlama2Trainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: transformers.TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.epoch_start = RandomState()
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(state.epoch or 0))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.epoch_start = None


class _OptimizerTime(TrainerCallback):
    """A callback that reports to the clock when the optimizer's step begins and ends."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.clock.enter("optimizer")

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.clock.enter(None)
