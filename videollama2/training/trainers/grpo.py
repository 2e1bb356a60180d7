"""Trains by group relative policy optimisation (GRPO; Shao et al. 2024, arXiv 2402.03300) with a user's reward.

For each question of a batch, the model samples a group of answers through the inference engine. An answer's advantage
is its reward compared with those of its group, so that no model of values is needed. The loss is that of equation 3 of
the paper: the clipped ratio of the answer's tokens to what they were when they were sampled, and the distance from the
model that the run began with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer_utils import TrainOutput

from videollama2.constants import IGNORE_INDEX
from videollama2.data.collator import TrainingCollator
from videollama2.errors import DataError, VideoLlama2Error
from videollama2.processing import VideoLlama2Processor
from videollama2.training.asking.rollouts import AnswerGroup, answer_questions, rows_of
from videollama2.training.rewards import load_reward
from videollama2.training.run.stopping import FAILED
from videollama2.training.run.whole_checkpoints import explain_unreadable
from videollama2.training.trainers.dpo import as_reference
from videollama2.training.trainers.trainer import VideoLlama2Trainer

ADVANTAGES, OLD, REFERENCE = "advantages", "old_log_probs", "start_log_probs"
"""Keys of a batch: the advantage of each row (B,), and earlier log-probabilities of its tokens (B, L - 1)."""
_SUMS = ("reward", "answer_length", "decided_groups", "kl", "clipped")
_ANSWERS_FILE = "answers-{process}.pt"


def grpo_loss(
    log_probs_BL: torch.Tensor,
    old_BL: torch.Tensor,
    reference_BL: torch.Tensor | None,
    answered_BL: torch.Tensor,
    advantages_B: torch.Tensor,
    clip: float,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss of each answer (B,), its mean distance from the reference (B,), and its share of clipped tokens.

    Args:
        log_probs_BL, old_BL, reference_BL: log-probabilities of the tokens now, when they were sampled, and by the
            model at the beginning (None without ``beta``).
        answered_BL: which tokens belong to answers; other values are not read.
        advantages_B: see :attr:`videollama2.training.asking.rollouts.AnswerGroup.advantages`.
        clip, beta: epsilon and beta of the paper.
    """
    ratio_BL = (log_probs_BL - old_BL).exp()
    clipped_BL = ratio_BL.clamp(1 - clip, 1 + clip)
    advantages_B1 = advantages_B[:, None]
    # The smaller of both is pessimistic: a token gains nothing by moving further than clip in the direction that its
    # advantage asks for, but may always come back.
    gained_BL = torch.minimum(ratio_BL * advantages_B1, clipped_BL * advantages_B1)
    kl_BL = torch.zeros_like(log_probs_BL)
    if reference_BL is not None:
        behind_BL = reference_BL - log_probs_BL
        kl_BL = behind_BL.exp() - behind_BL - 1  # equation 4: unbiased, and never negative
    is_clipped_BL = (gained_BL < ratio_BL * advantages_B1).to(gained_BL)
    lengths_B = answered_BL.sum(dim=1).clamp(min=1)
    means = [
        (values_BL * answered_BL).sum(dim=1) / lengths_B
        for values_BL in (beta * kl_BL - gained_BL, kl_BL, is_clipped_BL)
    ]
    return means[0], means[1].detach(), means[2].detach()


class GrpoTrainer(VideoLlama2Trainer):
    """A trainer whose loader gives lists of samples of a :class:`~videollama2.training.asking.rollouts.PromptDataset`.

    The loss is the mean over the answers of a step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.args.reward is not None
        self.reward = load_reward(self.args.reward)
        self.sums = torch.zeros(1 + len(_SUMS), dtype=torch.float64)
        self.generated = 0.0
        self.answers: list[list[AnswerGroup | None]] = []
        """The answers of the micro-batches of the current batch."""
        self.scores: list[dict[str, torch.Tensor]] = []
        """Their log-probabilities when they were sampled, and by the model at the beginning."""
        self.start: StartWeights | None = None

    def train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, resume_from_checkpoint: str | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train; the weights at this moment are the reference, before those of a checkpoint are read."""
        if self.args.kl_beta:
            self.start = StartWeights(self.model)
        if resume_from_checkpoint is not None:
            self._load_answers(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    # ------------------------------------------------------------------------------------------------ order

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        assert sampler is not None
        step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return Repeated(cast("Any", sampler), step, self.args.answer_updates)

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of lists of samples: batches are made of them once there are answers."""
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).collate_fn = _as_they_are
        return loader

    # -------------------------------------------------------------------------------------------- answers

    def _fetch(self, epoch_iterator: Iterator, num_batches: int) -> list[dict[str, Any]]:
        """Return the next micro-batches: the answers to their questions, with advantages."""
        batches = cast("list[Any]", super()._fetch(epoch_iterator, num_batches))
        begin = time.perf_counter()
        # With several updates, the loader repeats the questions of a step, and the answers are kept: the old log-
        # probabilities stay those of the moment at which they were sampled.
        is_new = self.state.global_step % self.args.answer_updates == 0
        if is_new:
            self.answers = self._agreed(lambda: [self._ask(samples) for samples in batches])
        made = [self._batch(*pair) for pair in zip(batches, self.answers, strict=True)]
        if is_new:
            self.scores = [self._score(batch) for batch in made]
        spent = time.perf_counter() - begin
        self.generated += spent
        self.meter.counts.waited -= spent  # only the wait for data is to be counted as such
        return [{**batch, **scores} for batch, scores in zip(made, self.scores, strict=True)]

    def _agreed(self, answer: Callable[[], list[Any]]) -> list[Any]:
        """Return what ``answer`` returns; if it fails on any process, all stop with a checkpoint (collective)."""
        found, failure = [], None
        try:
            found = answer()
        except (VideoLlama2Error, OSError, RuntimeError) as error:
            failure = error
        if self.agreement.largest(FAILED if failure else 0):
            self.stop_where_agreed(failure)
        if failure is not None:
            raise failure
        return found

    def _ask(self, samples: Sequence[dict[str, Any]]) -> list[AnswerGroup | None]:
        # A seed of their own for each step, so that a resumed run samples the same answers; a prime keeps the seeds of
        # neighbouring runs apart.
        step = self.state.global_step * 1_000_003 + self.args.seed
        processor = cast("VideoLlama2Processor", self.processing_class)
        return answer_questions(self.unwrapped(), processor, samples, self.reward, self.args, step)

    def _batch(self, samples: Sequence[dict[str, Any]], answers: list[AnswerGroup | None]) -> dict[str, Any]:
        batch = cast("TrainingCollator", self.data_collator)(rows_of(samples, answers))
        batch[ADVANTAGES] = torch.cat([torch.zeros(1) if own is None else own.advantages for own in answers])
        return batch

    def _score(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return log-probabilities of the answers by the current and the first weights, as far as they are needed."""
        scores: dict[str, torch.Tensor] = {}
        inputs = {name: value for name, value in batch.items() if name not in (ADVANTAGES, "bad_samples", "silent")}
        inputs.pop("attention_mask", None)
        with as_reference(self.model):
            inputs = self._prepare_inputs(inputs)
            if self.args.answer_updates > 1:
                scores[OLD] = token_log_probs(self.unwrapped(), inputs).cpu()
            if self.start is not None:
                with self.start.used():
                    scores[REFERENCE] = token_log_probs(self.unwrapped(), inputs).cpu()
        return scores

    # ------------------------------------------------------------------------------------------------- loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Return the number of answers in a step, over all processes."""
        answers = torch.stack([answered(batch["labels"]).any(dim=1).sum() for batch in batch_samples]).sum()
        return self.counted_over_processes(answers.to(device))

    # The evaluation of VideoLlama2Trainer does not ask for outputs.
    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of a micro-batch such that those of a step sum to the mean over its answers."""
        inputs.pop("attention_mask", None)
        advantages_B, old_BL, reference_BL = (inputs.pop(name, None) for name in (ADVANTAGES, OLD, REFERENCE))
        log_probs_BL = token_log_probs(model, inputs)
        answered_BL = answered(inputs["labels"])
        loss_B, kl_B, clipped_B = grpo_loss(
            log_probs_BL,
            # With one update, the answers were sampled by these very weights: the ratio is 1, and its gradient is that
            # of the logarithm.
            log_probs_BL.detach() if old_BL is None else old_BL,
            reference_BL,
            answered_BL,
            advantages_B,
            self.args.clip_ratio,
            self.args.kl_beta,
        )
        # Rows without an answer (questions that were left out) fill the batch and must not count.
        counted_B = answered_BL.any(dim=1)
        self.sums[-2:] += torch.stack([(each * counted_B).sum() for each in (kl_B, clipped_B)]).double().cpu()
        return self.share_of_step((loss_B * counted_B).sum(), num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the answers' mean reward and other measures of progress to a step's log line (collective)."""
        if "loss" in logs:
            logs.update(self._rates_of_answers())
        super().log(logs, start_time)

    def _rates_of_answers(self) -> dict[str, float]:
        for own in (own for answers in self.answers for own in answers if own is not None):
            count = len(own.rewards)
            decided = count * (max(own.rewards) > min(own.rewards))
            more = [count, sum(own.rewards), sum(map(len, own.ids)), decided]
            self.sums[:4] += torch.tensor(more, dtype=torch.float64)
        elapsed = time.perf_counter() - self.meter.started
        mine = torch.tensor([[*self.sums.tolist(), self.generated, elapsed]], device=self.args.device)
        sums = cast("torch.Tensor", self.accelerator.gather(mine)).sum(dim=0).tolist()
        self.sums.zero_()
        self.generated = 0.0
        rates = {name: value / max(sums[0], 1) for name, value in zip(_SUMS, sums[1:-2], strict=True)}
        rates["generation_share"] = sums[-2] / max(sums[-1], 1e-9)
        return {name: float(f"{value:.4g}") for name, value in rates.items()}

    # ------------------------------------------------------------------------------------------- resuming

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the answers that later steps learn from too, beside this process's random state."""
        if self.args.answer_updates > 1:
            answers = [[own and (own.ids, own.rewards) for own in batch] for batch in self.answers]
            kept = {"answers": answers, "scores": self.scores}
            torch.save(kept, Path(output_dir) / _ANSWERS_FILE.format(process=self.args.process_index))
        super()._save_rng_state(output_dir)

    def _load_answers(self, checkpoint: Path) -> None:
        path = checkpoint / _ANSWERS_FILE.format(process=self.args.process_index)
        if self.args.answer_updates == 1:
            return
        with explain_unreadable(str(checkpoint)):
            kept = torch.load(path, weights_only=True)
        self.answers = [[own and AnswerGroup(*own) for own in batch] for batch in kept["answers"]]
        self.scores = kept["scores"]


def token_log_probs(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the log-probability (B, L - 1) of each labelled token, 0 elsewhere."""
    return -model(**inputs, token_losses=True).loss


def answered(labels_BL: torch.Tensor) -> torch.Tensor:
    """Return which tokens (B, L - 1) of those that can be predicted have labels."""
    return labels_BL[:, 1:] != IGNORE_INDEX


class StartWeights:
    """A copy of the weights that learn, from the moment when it is made."""

    def __init__(self, model: nn.Module) -> None:
        self._pairs = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Compute with these weights inside the block, without gradients."""
        now = [parameter.data for parameter, _ in self._pairs]
        for parameter, start in self._pairs:
            parameter.data = start.to(parameter.device)
        try:
            yield
        finally:
            for (parameter, _), values in zip(self._pairs, now, strict=True):
                parameter.data = values


class Repeated(Sampler[int]):
    """The indices of ``sampler``, each block of ``size`` several times; what does not fill a block is left out.

    Raises:
        DataError: there is not a single block.
    """

    def __init__(self, sampler: Any, size: int, times: int) -> None:
        if len(sampler) < size:
            raise DataError(f"--objective grpo: {len(sampler)} records do not fill a batch of {size}")
        self.sampler, self.size, self.times = sampler, size, times

    def __len__(self) -> int:
        return len(self.sampler) // self.size * self.size * self.times

    def __iter__(self) -> Iterator[int]:
        order = list(self.sampler)
        for start in range(0, len(order) - self.size + 1, self.size):
            for _ in range(self.times):
                yield from order[start : start + self.size]


def _as_they_are(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(samples)
