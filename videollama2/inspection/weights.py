"""Compute how much each visual token weighed in an answer.

The weight of a token in one step is the absolute value of *gradient times input*: the gradient of the log-probability
of the chosen word with respect to the visual token, times that token, summed over its dimensions (Shrikumar et al.,
arXiv 1605.01713). It tells how sensitive the word was to the token, to first order; it does not prove what the answer
rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videollama2.errors import ConfigError, PromptError
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, VIDEO
from videollama2.model.connectors import frames_of_slice, token_grid
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import ReadOptions, VideoLlama2Processor
from videollama2.prompting import user_messages

CANDIDATES = 5
"""Number of likeliest words that are kept of each step."""


@dataclass(frozen=True)
class Step:
    """One step of an answer.

    Attributes:
        text: the chosen word or part of a word.
        candidates: the likeliest words with their probabilities, the likeliest first.
        weights_THW: share of each visual token in this step, float32 (time slices, rows, columns); they sum to 1.
        class_weight: share of the class token, for models that keep it, included in that sum.
    """

    text: str
    candidates: Sequence[tuple[str, float]]
    weights_THW: np.ndarray  # noqa: N815
    class_weight: float = 0.0


@dataclass(frozen=True)
class Inspection:
    """An answer with the weights of its steps.

    Attributes:
        pictures_THWC: frames as the encoder sees them, uint8.
        frames_of: for each time slice of tokens, the numbers of the frames that it is made of.
        connector: type of the connector.
    """

    source: str
    question: str
    answer: str
    connector: str
    steps: Sequence[Step]
    pictures_THWC: np.ndarray  # noqa: N815
    frames_of: Sequence[range]

    @property
    def weights_THW(self) -> np.ndarray:  # noqa: N802
        """Mean of the weights over the steps."""
        return np.mean([step.weights_THW for step in self.steps], axis=0)


def inspect_answer(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    kind: str,
    source: str | Path,
    question: str,
    sampling: FrameSampling | None = None,
    max_new_tokens: int = 32,
) -> Inspection:
    """Answer a question greedily and compute the weights of the visual tokens in every step.

    The parameters of the model do not require gradients afterwards.

    Args:
        kind: ``video`` or ``image``.
        sampling: the choice of a video's frames; by default the model's.

    Raises:
        MediaError: the medium cannot be read.
        PromptError: the kind is ``audio``.
        ConfigError: the model answers with nothing but the end token.
    """
    if kind == AUDIO:
        raise PromptError("inspect draws over pictures: give it a video or an image, not a sound")
    model.eval().requires_grad_(False)
    levels_TCHW = processor.read_levels(kind, source, ReadOptions(sampling or FrameSampling()))
    assert processor.transform is not None  # reading would have failed
    pixels_TCHW = _pixels(levels_TCHW, processor.transform.table).to(model.device, model.dtype)
    prompt = processor.prompt(user_messages(question, kind))
    batch = processor.prepare([prompt], [[pixels_TCHW]]).to(model.device)
    prompt_ids = batch["input_ids"][0]
    answer_ids = _answer_ids(model, processor, batch, len(prompt_ids), max_new_tokens)
    tokens_ND = _visual_tokens(model, kind, pixels_TCHW)
    grid, frames = _grid(model, kind, len(pixels_TCHW))
    return Inspection(
        source=str(source),
        question=question,
        answer=processor.tokenizer.decode(answer_ids, skip_special_tokens=True).strip(),
        connector=model.config.mm_projector_type,
        steps=_steps(model, processor.tokenizer, prompt_ids, answer_ids, kind, tokens_ND, grid),
        pictures_THWC=levels_TCHW.permute(0, 2, 3, 1).numpy(),
        frames_of=[
            _clipped(frames_of_slice(model.config.mm_projector_type, t, frames), pixels_TCHW) for t in range(grid[0])
        ],
    )


def _pixels(levels_TCHW: torch.Tensor, table: np.ndarray) -> torch.Tensor:
    channels = [torch.from_numpy(table[c])[levels_TCHW[:, c].long()] for c in range(levels_TCHW.shape[1])]
    return torch.stack(channels, dim=1)


@torch.no_grad()
def _answer_ids(
    model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, batch: Any, start: int, most: int
) -> torch.Tensor:
    """Return the ids of the greedy answer, without the end token."""
    generated = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        **batch, max_new_tokens=most, do_sample=False, pad_token_id=processor.pad_token_id
    )
    answer_ids = generated[0, start:]
    special = torch.tensor(processor.tokenizer.all_special_ids, device=answer_ids.device)
    answer_ids = answer_ids[~torch.isin(answer_ids, special)]
    if not len(answer_ids):
        raise ConfigError("the model answers with nothing but its end token, so there is no step to inspect")
    return answer_ids


@torch.no_grad()
def _visual_tokens(model: VideoLlama2ForConditionalGeneration, kind: str, pixels_TCHW: torch.Tensor) -> torch.Tensor:
    if kind == VIDEO:
        return model.get_video_features([pixels_TCHW]).pooler_output[0]
    return model.get_image_features(pixels_TCHW).pooler_output[0]


def _grid(model: VideoLlama2ForConditionalGeneration, kind: str, frames: int) -> tuple[tuple[int, int, int], int]:
    """Return the grid of the visual tokens, and the number of frames that they stand for."""
    config = model.config
    shown = frames if kind == VIDEO else config.num_frames  # a still image counts as that many equal frames
    return token_grid(config.mm_projector_type, shown, config.patches_per_side), shown


def _clipped(frames: range, pixels_TCHW: torch.Tensor) -> range:
    """Return the frames that exist; a still image is its only frame, and padding alone shows the nearest frame."""
    last = len(pixels_TCHW) - 1
    first = min(frames.start, last)
    return range(first, max(first + 1, min(frames.stop, last + 1)))


def _steps(
    model: VideoLlama2ForConditionalGeneration,
    tokenizer: Any,
    prompt_ids: torch.Tensor,
    answer_ids: torch.Tensor,
    kind: str,
    tokens_ND: torch.Tensor,
    grid: tuple[int, int, int],
) -> list[Step]:
    """Run the whole answer through the model once, and take the gradient of every step."""
    tokens_ND = tokens_ND.detach().requires_grad_()
    ids_1L = torch.cat([prompt_ids, answer_ids])[None]
    with torch.enable_grad():
        embeds_1LD = model.model.embed(ids_1L, **{f"{kind}_tokens": [tokens_ND]})
        output = model(inputs_embeds=embeds_1LD, logits_to_keep=len(answer_ids) + 1, use_cache=False)
        assert output.logits is not None  # it is None only with labels
        log_probs_SV = output.logits[0, :-1].float().log_softmax(dim=-1)
        steps = []
        for number, (token, log_probs_V) in enumerate(zip(answer_ids, log_probs_SV, strict=True)):
            is_last = number == len(answer_ids) - 1
            (gradient_ND,) = torch.autograd.grad(log_probs_V[token], tokens_ND, retain_graph=not is_last)
            weights_N = (gradient_ND * tokens_ND.detach()).float().sum(dim=-1).abs()
            steps.append(_step(tokenizer, int(token), log_probs_V.detach(), weights_N.cpu(), grid))
    return steps


def _step(
    tokenizer: Any, token: int, log_probs_V: torch.Tensor, weights_N: torch.Tensor, grid: tuple[int, int, int]
) -> Step:
    shares_N = (weights_N / weights_N.sum().clamp_min(torch.finfo(torch.float32).tiny)).numpy()
    of_grid_N = shares_N[-int(np.prod(grid)) :]  # the class token comes first
    likeliest = log_probs_V.exp().topk(CANDIDATES)
    words = [tokenizer.decode([index]) for index in likeliest.indices.tolist()]
    step = Step(
        tokenizer.decode([token]), list(zip(words, likeliest.values.tolist(), strict=True)), of_grid_N.reshape(grid)
    )
    return replace(step, class_weight=float(shares_N[0])) if len(shares_N) > len(of_grid_N) else step
