"""Samples tokens: the options of a request, and the choice of the next tokens for a whole batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from videollama2.constants import MAX_SEED
from videollama2.errors import ConfigError
from videollama2.inference.structure import Constraint, Structure
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

if TYPE_CHECKING:
    from transformers import GenerationConfig

GREEDY_BELOW = 1e-5
"""A lower temperature counts as greedy: only the most likely token would remain, and dividing logits would overflow."""


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling options of one request.

    Args:
        max_new_tokens: maximum length of the answer; None for as many tokens as fit.
        min_new_tokens: minimum length of the answer; end-of-text tokens are forbidden before it is reached.
        temperature: 0 always chooses the most likely token (greedy).
        top_p: sample from the most likely tokens whose probabilities add up to this value.
        top_k: sample from this number of most likely tokens; 0 for all.
        min_p: sample from tokens at least this many times as likely as the most likely one; 0 for all.
        repetition_penalty: divides positive and multiplies negative logits of tokens already in the answer. The prompt
            does not count, as in the published code, which generates from embeddings. None for the checkpoint's value
            (``generation_config.json``), as published.
        frequency_penalty: subtracted from a token's logit for each time it occurs in the answer, -2 to 2.
        presence_penalty: subtracted from the logit of each token that occurs in the answer, -2 to 2.
        logit_bias: token id -> value added to its logit, -100 to 100.
        no_repeat_ngram_size: no sequence of this many tokens may occur twice in an answer; 0 for no limit.
        structure: the required form of the answer; excludes ``ignore_eos`` and ``min_new_tokens``.
        stop: strings that end the answer; they are not part of it.
        end_ids: tokens that end the answer, instead of the model's end-of-text tokens; None for the latter.
        ignore_eos: continue after an end-of-text token, treating it like any other token.
        skip_special_tokens: leave the names of special tokens out of the text.
        seed: the same seed gives the same answer, whatever else runs; None for a different one each time.
        logprobs: number of most likely tokens to report besides each chosen one (0 for the chosen one only), or None.

    Raises:
        ConfigError: a value is out of range.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    no_repeat_ngram_size: int = 0
    structure: Structure | None = None
    stop: Sequence[str] = ()
    end_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        for name, (holds, rule) in self._rules().items():
            if not holds:
                raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)!r}")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}")
        if self.structure is not None and (self.ignore_eos or self.min_new_tokens):
            raise ConfigError("a structure says where its answer ends: ignore_eos and min_new_tokens cannot")

    def _rules(self) -> dict[str, tuple[bool, str]]:
        """Return for each field whether its value satisfies the rule, and the rule in words."""
        return {
            "max_new_tokens": (self.max_new_tokens is None or _whole(self.max_new_tokens, 1), "at least 1"),
            "min_new_tokens": (_whole(self.min_new_tokens, 0), "0 or more"),
            "temperature": (_number(self.temperature) and self.temperature >= 0, "0 (greedy) or more, and finite"),
            "top_p": (_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (_whole(self.top_k, 0), "0 (all tokens) or more"),
            "min_p": (_number(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1"),
            "frequency_penalty": (_within(self.frequency_penalty, 2), "from -2 to 2"),
            "presence_penalty": (_within(self.presence_penalty, 2), "from -2 to 2"),
            "logit_bias": (
                all(_whole(token, 0) and _within(bias, 100) for token, bias in self.logit_bias.items()),
                "token ids with numbers from -100 to 100",
            ),
            "no_repeat_ngram_size": (_whole(self.no_repeat_ngram_size, 0), "0 or more"),
            "end_ids": (self.end_ids is None or all(_whole(token, 0) for token in self.end_ids), "token ids"),
            "repetition_penalty": (
                self.repetition_penalty is None or _number(self.repetition_penalty) and self.repetition_penalty > 0,
                "above 0, and finite",
            ),
            "stop": (all(isinstance(text, str) and text for text in self.stop), "texts that are not empty"),
            "seed": (self.seed is None or _whole(self.seed, 0), "0 or more"),
            "logprobs": (self.logprobs is None or _whole(self.logprobs, 0), "0 or more"),
        }


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_SEED


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _within(value: object, bound: float) -> bool:
    return _number(value) and -bound <= value <= bound


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms of the probabilities of a chosen token and of the most likely tokens in its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Chooser:
    """Chooses the tokens of one request, with the request's own random number generator.

    Args:
        end_ids: the model's end-of-text tokens.
        constraint: the constraint of the request's structure, if it has one.
    """

    options: SamplingOptions
    end_ids: frozenset[int]
    constraint: Constraint | None = None
    chosen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # One uniform number per token is drawn outside of torch: it is the same on every device and in every batch.
        self._random = Random(self.options.seed)
        self._counts: Counter[int] = Counter()
        if self.options.end_ids is not None:
            self.end_ids = frozenset(self.options.end_ids)

    def draw(self) -> float:
        return self._random.random()

    def ends_with(self, token_id: int) -> bool:
        """Return whether ``token_id`` ends the answer."""
        return token_id in self.end_ids and not self.options.ignore_eos

    def take(self, token_id: int) -> None:
        """Append the chosen token to the answer."""
        self.chosen.append(token_id)
        self._counts[token_id] += 1
        if self.constraint is not None:
            self.constraint.advance(token_id)

    def adjust(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Apply penalties and bias, then forbid tokens that violate the structure, repeat an n-gram or end early."""
        options = self.options
        # Penalties and biases make tokens more or less likely; what follows forbids some of them, whatever their bias.
        logits_V = self._penalised(logits_V)
        if options.logit_bias:
            ids, biases = zip(*options.logit_bias.items(), strict=True)
            places = torch.tensor(ids, device=logits_V.device)
            logits_V = logits_V.index_add(0, places, logits_V.new_tensor(biases))
        if self.constraint is not None:
            logits_V = logits_V.masked_fill(~self.constraint.allowed(len(logits_V)).to(logits_V.device), -torch.inf)
        banned = self._repeating()
        if len(self.chosen) < options.min_new_tokens:
            banned |= self.end_ids
        if banned:
            logits_V = logits_V.index_fill(0, torch.tensor(sorted(banned), device=logits_V.device), -torch.inf)
        return logits_V

    def _repeating(self) -> set[int]:
        """Return the tokens that would repeat a sequence of ``no_repeat_ngram_size`` tokens of the answer."""
        size = self.options.no_repeat_ngram_size
        if not size or len(self.chosen) < size:
            return set()
        last = self.chosen[len(self.chosen) - size + 1 :]
        runs = (self.chosen[start : start + size] for start in range(len(self.chosen) - size + 1))
        return {run[-1] for run in runs if run[:-1] == last}

    def _penalised(self, logits_V: torch.Tensor) -> torch.Tensor:
        repetition = self.options.repetition_penalty or 1
        frequency, presence = self.options.frequency_penalty, self.options.presence_penalty
        if not self._counts or (repetition == 1 and not frequency and not presence):
            return logits_V
        ids, counts = zip(*sorted(self._counts.items()), strict=True)
        places = torch.tensor(ids, device=logits_V.device)
        values = logits_V[places]
        if repetition != 1:
            # Either way the token becomes less likely, as in transformers.
            values = torch.where(values < 0, values * repetition, values / repetition)
        return logits_V.index_copy(0, places, values - frequency * values.new_tensor(counts) - presence)


def choose(logits_BV: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """Choose the next token of each row. A row's choice depends only on its own logits and random numbers.

    Args:
        logits_BV: logits of the next token, float32.
    """
    # Most requests have neither penalties nor a structure. Their rows come back as the same memory, and then the batch
    # need not be put together anew.
    rows = [chooser.adjust(logits_V) for logits_V, chooser in zip(logits_BV, choosers, strict=True)]
    if any(row.data_ptr() != logits_V.data_ptr() for row, logits_V in zip(rows, logits_BV, strict=True)):
        logits_BV = torch.stack(rows)
    # The greedy choice is computed for all rows together, and then replaced in those that sample.
    ids = _largest(logits_BV)
    sampled = [row for row, chooser in enumerate(choosers) if chooser.options.temperature >= GREEDY_BELOW]
    if sampled:
        for row, token in zip(sampled, _sample(logits_BV[sampled], [choosers[row] for row in sampled]), strict=True):
            ids[row] = token
    return ids


def _largest(logits_BV: torch.Tensor) -> list[int]:
    """Return the index of each row's largest logit, the first of equal ones."""
    if logits_BV.device.type == "cpu":
        # torch takes ten times as long there: 4 ms for 16 rows of 152,000.
        return logits_BV.numpy().argmax(-1).tolist()
    return logits_BV.argmax(-1).tolist()


def _sample(logits_BV: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """Sample by inverse transform from the tokens that min_p, top_k and top_p leave.

    Tokens are sorted by probability, so each filter removes the end of a row. A uniform number, scaled to the sum of
    the remaining probabilities, then selects the token at which their cumulative sum exceeds it.
    """
    # The sort is stable: of equal logits the lower id comes first, in every batch and on every device.
    temperatures = logits_BV.new_tensor([chooser.options.temperature for chooser in choosers])
    values_BV, order_BV = (logits_BV / temperatures.unsqueeze(1)).sort(dim=-1, descending=True, stable=True)
    # The most likely token is first, and min_p limits how far below its logit the other logits may be.
    min_p = values_BV.new_tensor([chooser.options.min_p for chooser in choosers]).unsqueeze(1)
    values_BV = values_BV.masked_fill(values_BV < values_BV[:, :1] + min_p.log(), -torch.inf)
    vocabulary = values_BV.shape[-1]
    top_k = torch.tensor([chooser.options.top_k or vocabulary for chooser in choosers], device=values_BV.device)
    ranks_V = torch.arange(vocabulary, device=values_BV.device)
    values_BV = values_BV.masked_fill(ranks_V >= top_k.unsqueeze(1), -torch.inf)
    # In float64, because the sums over a vocabulary of 150,000 tokens are compared with top_p and with a random number.
    probabilities_BV = values_BV.softmax(-1, dtype=torch.float64)
    # A token is kept if those before it do not reach top_p yet. The first one is therefore always kept.
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    top_p = before_BV.new_tensor([chooser.options.top_p for chooser in choosers])
    kept_BV = probabilities_BV.masked_fill(before_BV >= top_p.unsqueeze(1), 0)
    sums_BV = kept_BV.cumsum(-1)
    points = sums_BV[:, -1] * sums_BV.new_tensor([chooser.draw() for chooser in choosers])
    # A random number close to 1 may be rounded up to the sum itself, whose place is behind the last token that was
    # kept.
    places = torch.searchsorted(sums_BV, points.unsqueeze(1), right=True)
    places = torch.minimum(places, (kept_BV > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
    return order_BV.gather(1, places).squeeze(1).tolist()


def logprob(logits_V: torch.Tensor, token_id: int, top: int) -> TokenLogprob:
    """Return the log-probability of a token under the model's own logits, before temperature and penalties."""
    logprobs_V = logits_V.log_softmax(-1)
    values, ids = logprobs_V.topk(min(top, len(logprobs_V)))
    return TokenLogprob(token_id, logprobs_V[token_id].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def end_ids(model: VideoLlama2ForConditionalGeneration, tokenizer: Any) -> list[int]:
    """Return the ids of end-of-text tokens: those of the generation configuration and that of the tokenizer.

    The published code stops at the tokenizer's; the generation configuration of a fine-tuned checkpoint may only list
    those of its base model.
    """
    return end_ids_of(model.generation_config, tokenizer)


def end_ids_of(generation_config: GenerationConfig, tokenizer: Any) -> list[int]:
    """Return the ids of end-of-text tokens, see :func:`end_ids`."""
    configured = generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(ends - {None})
