"""Trains by direct preference optimisation (DPO; Rafailov et al. 2023, arXiv 2305.18290) on pairs of answers.

The reference is the model that the run began with. If LoRA matrices are all that learns, it is the same model without
them. Otherwise its log-probabilities of all answers are computed before the first step, so that no second model has to
be kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers.trainer_utils import TrainOutput

from videollama2.checkpoints.lora import has_lora
from videollama2.commands import hides_bar
from videollama2.data.pairs import PAIRS, REFERENCE, PreferencePairs
from videollama2.training.reports.meter import COUNTS, Collate
from videollama2.training.run.folder import REFERENCE_FILE
from videollama2.training.run.stopping import shield_workers
from videollama2.training.trainers.trainer import VideoLlama2Trainer

_SUMS = ("reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy")


def dpo_loss(policy_P2: torch.Tensor, reference_P2: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of P pairs, and the implicit rewards (P, 2) of their answers.

    Args:
        policy_P2, reference_P2: log-probabilities of the better and of the worse answer.
        beta: factor of the rewards, equation 7 of the paper.
    """
    rewards_P2 = beta * (policy_P2 - reference_P2)
    return -F.logsigmoid(rewards_P2[:, 0] - rewards_P2[:, 1]).sum(), rewards_P2.detach()


class DpoTrainer(VideoLlama2Trainer):
    """A trainer whose dataset is :class:`PreferencePairs`; the loss is the mean over the pairs of a step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adapters_alone = only_adapters_learn(self.model)
        self.sums = torch.zeros(1 + len(_SUMS), dtype=torch.float64)

    def train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, resume_from_checkpoint: str | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train, after the reference's log-probabilities are known if the reference cannot be computed later."""
        if not self.adapters_alone:
            cast("PreferencePairs", self.train_dataset).reference = self._reference(resume_from_checkpoint is not None)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    # ------------------------------------------------------------------------------------------------- loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Return the number of pairs in a step, over all processes."""
        return self.counted_over_processes(
            torch.tensor(sum(batch.get(PAIRS, 0) for batch in batch_samples), device=device)
        )

    # The evaluation of VideoLlama2Trainer does not ask for outputs.
    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of a micro-batch such that those of a step sum to the mean over its pairs."""
        pairs = inputs.pop(PAIRS, 0)
        known = inputs.pop(REFERENCE, None)
        policy_P2 = log_probs_of_pairs(model, inputs, pairs)
        if known is not None:
            reference_P2 = known.view(pairs, 2).to(policy_P2)
        elif self.adapters_alone:
            reference_P2 = self._without_adapters(model, inputs, pairs)
        else:
            reference_P2 = policy_P2.detach()  # there are no pairs
        total, rewards_P2 = dpo_loss(policy_P2, reference_P2, self.args.dpo_beta)
        self._add(rewards_P2)
        return self.share_of_step(total, num_items_in_batch)

    def _add(self, rewards_P2: torch.Tensor) -> None:
        chosen_P, rejected_P = rewards_P2.double().cpu().unbind(dim=1)
        values = (
            torch.ones_like(chosen_P),
            chosen_P,
            rejected_P,
            chosen_P - rejected_P,
            (chosen_P > rejected_P).double(),
        )
        self.sums += torch.stack([value.sum() for value in values])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean implicit rewards of both answers to a step's log line (a collective operation)."""
        if "loss" in logs:
            sums = cast("torch.Tensor", self.accelerator.gather(self.sums[None].float().to(self.args.device))).sum(
                dim=0
            )
            if sums[0]:
                logs.update(
                    {name: float(f"{value / sums[0]:.4g}") for name, value in zip(_SUMS, sums[1:], strict=True)}
                )
            self.sums.zero_()
        super().log(logs, start_time)

    # ------------------------------------------------------------------------------------------- reference

    def _without_adapters(self, model: nn.Module, inputs: dict[str, Any], pairs: int) -> torch.Tensor:
        with adapters_off(self.model), as_reference(model):
            return log_probs_of_pairs(model, inputs, pairs)

    def _reference(self, resumed: bool) -> torch.Tensor:
        """Return the reference's log-probabilities (records, 2); a resumed run reads them from its folder."""
        dataset = cast("PreferencePairs", self.train_dataset)
        path = self.args.output_folder / REFERENCE_FILE
        if resumed and path.is_file():
            found = torch.from_numpy(np.load(path, allow_pickle=False))
            if found.shape == (len(dataset), 2):
                return found
        found = self._compute_reference(dataset)
        if self.args.should_save:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, found.numpy(), allow_pickle=False)
        return found

    def _compute_reference(self, dataset: PreferencePairs) -> torch.Tensor:
        device = self.args.device
        cast("nn.Module", self.model).to(device)  # under DeepSpeed, the engine that would do it is not there yet
        mine = range(self.args.process_index, len(dataset), self.args.world_size)
        loader = DataLoader(
            cast("Dataset[Any]", Subset(dataset, mine)),
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=_KeepingPlaces(cast("Collate", self.data_collator)),
            num_workers=self.args.dataloader_num_workers,
        )
        shield_workers(loader)
        found_N2 = torch.zeros(len(dataset), 2, device=device)
        places = iter(mine)
        bar = tqdm(loader, desc="reference", delay=2, disable=hides_bar(self.args.local_process_index == 0))
        for are_pairs, batch in bar:
            self._note_bad(batch)
            batch.pop(COUNTS, None)
            batch.pop("attention_mask", None)
            rows = [
                place for place, is_pair in zip([next(places) for _ in are_pairs], are_pairs, strict=True) if is_pair
            ]
            with as_reference(self.model):
                inputs = self._prepare_inputs(batch)
                pairs = cast("int", inputs.pop(PAIRS, 0))
                found_N2[rows] = log_probs_of_pairs(self.model, inputs, pairs).float()
        return cast("torch.Tensor", self.accelerator.reduce(found_N2, "sum")).cpu()


def log_probs_of_pairs(model: nn.Module, inputs: dict[str, Any], pairs: int) -> torch.Tensor:
    """Return the log-probabilities (pairs, 2) of the answers in a batch.

    Without pairs, the result still depends on all weights that learn, as DDP and ZeRO expect.

    Args:
        inputs: a batch of :class:`~videollama2.data.pairs.PairCollator` without its other keys.
        pairs: the number of its pairs.
    """
    losses_BL = model(**inputs, token_losses=True).loss
    sums_B = -losses_BL.sum(dim=1)
    return sums_B[: 2 * pairs].view(pairs, 2) + 0.0 * sums_B[2 * pairs :].sum()


def only_adapters_learn(model: nn.Module) -> bool:
    """Whether the matrices of LoRA are all that learns: the model without them is then the one the run began with."""
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return has_lora(cast("Any", model)) and all(".lora_" in name for name in learning)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Compute without the matrices of LoRA inside the block."""
    inner = cast("Any", model)
    inner.disable_adapters()
    try:
        yield
    finally:
        inner.enable_adapters()


@contextmanager
def as_reference(model: nn.Module) -> Iterator[None]:
    """Compute without gradients and dropout inside the block."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _KeepingPlaces:
    """A collator that also says which samples are pairs."""

    collate: Collate

    def __call__(self, samples: Sequence[dict[str, Any]]) -> tuple[list[bool], dict[str, Any]]:
        return [PAIRS in sample for sample in samples], self.collate(samples)
