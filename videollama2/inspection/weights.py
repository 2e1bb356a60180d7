"""Computes how much each token of a medium weighed in an answer: of its pictures, and of the sound of a video.

The weight of a token in one step is the absolute value of *gradient times input*: the gradient of the log-probability
of the chosen word with respect to the token, times that token, summed over its dimensions (Shrikumar et al.,
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
        weights_THW: share of each visual token in this step, float32 (time slices, rows, columns). All shares of a
            step, those below included, sum to 1.
        class_weight: share of the class token, for models that keep it.
        sound_TF: share of each token of the sound, float32 (patches along time, patches along frequency); None if no
            sound was heard.
    """

    text: str
    candidates: Sequence[tuple[str, float]]
    weights_THW: np.ndarray  # noqa: N815
    class_weight: float = 0.0
    sound_TF: np.ndarray | None = None  # noqa: N815


@dataclass(frozen=True)
class Inspection:
    """An answer with the weights of its steps.

    Attributes:
        pictures_THWC: frames as the encoder sees them, uint8.
        frames_of: for each time slice of tokens, the numbers of the frames that it is made of.
        connector: type of the connector.
        fbank_TF: the filter bank of the sound that was heard with the video (frames, mel bins); None without one.
        notes: remarks about the media, such as that a video has no sound track.
    """

    source: str
    question: str
    answer: str
    connector: str
    steps: Sequence[Step]
    pictures_THWC: np.ndarray  # noqa: N815
    frames_of: Sequence[range]
    fbank_TF: np.ndarray | None = None  # noqa: N815
    notes: Sequence[str] = ()

    @property
    def sound_TF(self) -> np.ndarray | None:  # noqa: N802
        """Mean of the weights of the sound over the steps; None if no sound was heard."""
        weights = [step.sound_TF for step in self.steps if step.sound_TF is not None]
        return np.mean(weights, axis=0) if weights else None

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
    use_audio: bool | None = None,
) -> Inspection:
    """Answer a question greedily and compute the weights of the medium's tokens in every step.

    The parameters of the model do not require gradients afterwards.

    Args:
        kind: ``video`` or ``image``.
        sampling: the choice of a video's frames; by default the model's.
        use_audio: whether the sound of a video is heard too; by default by a model with an audio encoder.

    Raises:
        MediaError: the medium cannot be read.
        PromptError: the kind is ``audio``, or the model cannot hear the sound that was asked for.
        ConfigError: the model answers with nothing but the end token.
    """
    if kind == AUDIO:
        raise PromptError("inspect draws over pictures: give it a video or an image, not a sound")
    model.eval().requires_grad_(False)
    options = ReadOptions(sampling or FrameSampling())
    levels_TCHW = processor.read_levels(kind, source, options)
    assert processor.transform is not None  # reading would have failed
    pixels_TCHW = _pixels(levels_TCHW, processor.transform.table).to(model.device, model.dtype)
    is_heard = kind == VIDEO and (model.config.hears if use_audio is None else use_audio)
    fbank_1TF, note = processor.hear(source, options.of_its_sound) if is_heard else (None, None)
    messages = user_messages(question, kind)
    if fbank_1TF is not None:
        messages[0]["content"][0]["use_audio"] = True
    media = [pixels_TCHW] if fbank_1TF is None else [pixels_TCHW, fbank_1TF]
    batch = processor.prepare([processor.prompt(messages)], [media]).to(model.device)
    prompt_ids = batch["input_ids"][0]
    answer_ids = _answer_ids(model, processor, batch, len(prompt_ids), max_new_tokens)
    tokens = {kind: _visual_tokens(model, kind, pixels_TCHW)}
    if fbank_1TF is not None:
        tokens[AUDIO] = _sound_tokens(model, fbank_1TF)
    grid, frames = _grid(model, kind, len(pixels_TCHW))
    return Inspection(
        source=str(source),
        question=question,
        answer=processor.tokenizer.decode(answer_ids, skip_special_tokens=True).strip(),
        connector=model.config.mm_projector_type,
        steps=_steps(model, processor.tokenizer, prompt_ids, answer_ids, tokens, grid),
        pictures_THWC=levels_TCHW.permute(0, 2, 3, 1).numpy(),
        frames_of=[
            _clipped(frames_of_slice(model.config.mm_projector_type, t, frames), pixels_TCHW) for t in range(grid[0])
        ],
        fbank_TF=None if fbank_1TF is None else fbank_1TF[0].float().numpy(),
        notes=() if note is None else (note,),
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


@torch.no_grad()
def _sound_tokens(model: VideoLlama2ForConditionalGeneration, fbank_1TF: torch.Tensor) -> torch.Tensor:
    sound = fbank_1TF.to(model.device, model.dtype)
    return model.get_audio_features(sound).pooler_output[0]


def _grid(model: VideoLlama2ForConditionalGeneration, kind: str, frames: int) -> tuple[tuple[int, int, int], int]:
    """Return the grid of the visual tokens, and the number of frames that they stand for."""
    config = model.config
    shown = frames if kind == VIDEO else config.still_frames
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
    tokens: dict[str, torch.Tensor],
    grid: tuple[int, int, int],
) -> list[Step]:
    """Run the whole answer through the model once, and take the gradient of every step.

    Args:
        tokens: for each kind of medium, the visual one first, its tokens (N, D).
    """
    tokens = {kind: tokens_ND.detach().requires_grad_() for kind, tokens_ND in tokens.items()}
    ids_1L = torch.cat([prompt_ids, answer_ids])[None]
    with torch.enable_grad():
        embeds_1LD = model.model.embed(ids_1L, **{f"{kind}_tokens": [tokens_ND] for kind, tokens_ND in tokens.items()})
        output = model(inputs_embeds=embeds_1LD, logits_to_keep=len(answer_ids) + 1, use_cache=False)
        assert output.logits is not None  # it is None only with labels
        log_probs_SV = output.logits[0, :-1].float().log_softmax(dim=-1)
        steps = []
        for number, (token, log_probs_V) in enumerate(zip(answer_ids, log_probs_SV, strict=True)):
            is_last = number == len(answer_ids) - 1
            gradients = torch.autograd.grad(log_probs_V[token], list(tokens.values()), retain_graph=not is_last)
            weights = [
                (gradient_ND * tokens_ND.detach()).float().sum(dim=-1).abs().cpu()
                for gradient_ND, tokens_ND in zip(gradients, tokens.values(), strict=True)
            ]
            step = _step(tokenizer, int(token), log_probs_V.detach(), weights, grid)
            steps.append(step if step.sound_TF is None else replace(step, sound_TF=_by_patch(model, step.sound_TF)))
    return steps


def _by_patch(model: VideoLlama2ForConditionalGeneration, weights_N: np.ndarray) -> np.ndarray:
    """Arrange the weights of a sound's tokens as the encoder's patches: the encoder goes through time slowest."""
    audio = model.config.hearing
    return weights_N.reshape(-1, audio.num_mel_bins // audio.input_patch_size)


def _step(
    tokenizer: Any,
    token: int,
    log_probs_V: torch.Tensor,
    weights: Sequence[torch.Tensor],
    grid: tuple[int, int, int],
) -> Step:
    whole = torch.cat([*weights]).sum().clamp_min(torch.finfo(torch.float32).tiny)
    shares_N, *sound = ((weights_N / whole).numpy() for weights_N in weights)
    of_grid_N = shares_N[-int(np.prod(grid)) :]  # the class token comes first
    likeliest = log_probs_V.exp().topk(CANDIDATES)
    words = [tokenizer.decode([index]) for index in likeliest.indices.tolist()]
    step = Step(
        tokenizer.decode([token]),
        list(zip(words, likeliest.values.tolist(), strict=True)),
        of_grid_N.reshape(grid),
        sound_TF=sound[0] if sound else None,
    )
    return replace(step, class_weight=float(shares_N[0])) if len(shares_N) > len(of_grid_N) else step
