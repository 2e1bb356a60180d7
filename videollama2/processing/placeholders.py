"""Makes the rows of a batch from prompts and media: placeholders, their counts, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from videollama2.config import VideoLlama2Config
from videollama2.constants import IGNORE_INDEX
from videollama2.errors import PromptError
from videollama2.media.frames import frames_or_own
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, SEEN, VIDEO, with_article
from videollama2.model.connectors import tokens_of_clip
from videollama2.processing.read_options import ReadOptions
from videollama2.prompting import Prompt

_KIND_OF_SENTINEL = {kind.sentinel: kind for kind in KINDS.values()}


def media_tokens(config: VideoLlama2Config, kind: str, num_frames: int | None = None) -> int:
    """Return the number of tokens of one medium.

    Args:
        num_frames: number of frames of a video or of a sound's filter bank; defaults to the configuration's. An image
            counts as ``config.still_frames`` frames.

    Raises:
        PromptError: this model has no encoder for the kind.
    """
    check_kind(config, kind)
    if kind == AUDIO:
        audio = config.audio_config
        assert audio is not None  # check_kind has made sure of that
        return audio.tokens_of(audio.clip_frames if num_frames is None else num_frames)
    frames = config.still_frames if kind == IMAGE else frames_or_own(num_frames, config.num_frames)
    return tokens_of_clip(config, frames)


def planned_tokens(config: VideoLlama2Config, kind: str, options: ReadOptions) -> int | None:
    """Return the number of tokens of a medium read with these options, or None if that depends on its content."""
    if kind != VIDEO:
        return media_tokens(config, kind)
    frames = options.sampling.for_model(config.num_frames).count
    return None if frames is None else media_tokens(config, kind, frames)


def media_kinds(config: VideoLlama2Config) -> tuple[str, ...]:
    """Return the kinds of media that a model takes."""
    return SEEN * config.sees + (AUDIO,) * config.hears


def check_kind(config: VideoLlama2Config, kind: str) -> None:
    """Raise PromptError if a model has no encoder for media of this kind."""
    if kind == AUDIO and not config.hears:
        raise PromptError("this model has no audio encoder: it cannot hear a sound")
    if kind != AUDIO and not config.sees:
        raise PromptError(f"this model has no vision encoder: it cannot be shown {with_article(kind)}")


def check_medium(values: Any, kind: str, config: VideoLlama2Config) -> int:
    """Check a processor's output for a medium; returns the number of frames.

    Args:
        values: pixels (T, C, H, W), with T = 1 for an image, or the filter bank (1, T, F) of a sound.

    Raises:
        PromptError: the value is not a floating point tensor of the right shape, or the model has no encoder for the
            kind.
    """
    if not torch.is_tensor(values) or not values.is_floating_point():
        # Unnormalised values from 0 to 255 would be accepted by the model, but give a wrong answer.
        found = f"these are {values.dtype}" if torch.is_tensor(values) else f"got {type(values).__name__}"
        what = "a filter bank" if kind == AUDIO else "pixels"
        raise PromptError(f"{with_article(kind)} must be {what} made by processor[{kind!r}], {found}")
    check_kind(config, kind)
    return _check_fbank(values, config) if kind == AUDIO else _check_pixels(values, kind, config)


def _check_fbank(fbank_1TF: torch.Tensor, config: VideoLlama2Config) -> int:
    audio = config.audio_config
    assert audio is not None  # the caller has checked the kind
    shape = tuple(fbank_1TF.shape)
    if len(shape) != 3 or shape[0] != 1 or shape[2] != audio.num_mel_bins or audio.tokens_of(shape[1]) < 1:
        raise PromptError(
            f"a sound must be a tensor (1, frames, {audio.num_mel_bins}) of at least {audio.input_patch_size} frames, "
            f"got {shape}"
        )
    return shape[1]


def _check_pixels(pixels: torch.Tensor, kind: str, config: VideoLlama2Config) -> int:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[0] < 1:
        raise PromptError(f"a {kind} must be a tensor (frames, 3, height, width), got {tuple(pixels.shape)}")
    if kind == IMAGE and pixels.shape[0] != 1:
        raise PromptError(f"an image must be a tensor (1, 3, height, width), got {tuple(pixels.shape)}")
    height, width = pixels.shape[-2:]
    # Encoders with learnt positions would take other sizes by interpolation, and give features that nothing was trained
    # on.
    size = config.sight.image_size
    if (height, width) != (size, size):
        raise PromptError(f"the {kind} is {height}x{width} pixels, the vision encoder takes {size}x{size}")
    return pixels.shape[0]


def expand_placeholders(
    ids: Sequence[int], counts: Sequence[int], config: VideoLlama2Config, labels: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Replace each sentinel by one placeholder id per token of its medium.

    Args:
        ids: ids with published sentinels, see :class:`videollama2.prompting.Prompt`.
        counts: number of tokens per medium, in reading order.
        labels: labels of ``ids``; the expanded positions have no label.

    Returns:
        ids and labels of equal length (all labels are ignored if none are given).

    Raises:
        PromptError: the numbers of sentinels and counts differ.
    """
    sentinels = [i for i in ids if i in _KIND_OF_SENTINEL]
    if len(sentinels) != len(counts):
        raise PromptError(f"the prompt names {len(sentinels)} media but {len(counts)} are given")
    remaining = iter(counts)
    out_ids: list[int] = []
    out_labels: list[int] = []
    for position, token in enumerate(ids):
        kind = _KIND_OF_SENTINEL.get(token)
        if kind is None:
            out_ids.append(token)
            out_labels.append(IGNORE_INDEX if labels is None else labels[position])
        else:
            count = next(remaining)
            out_ids += [getattr(config, kind.token_id_field)] * count
            out_labels += [IGNORE_INDEX] * count
    return out_ids, out_labels


def expand_prompts(
    prompts: Sequence[Prompt],
    media: Sequence[Sequence[torch.Tensor]],
    tokenizer: Any,
    config: VideoLlama2Config,
) -> tuple[list[list[int]], list[list[tuple[str, torch.Tensor]]]]:
    """Convert prompts and their media, in the order of the prompts' tags, to the rows and media of :func:`collate`.

    Returns:
        for each prompt its ids with placeholders, and its media as ``(kind, values)``, see :func:`check_medium`.

    Raises:
        PromptError: a prompt has more or fewer tags than media, or this model cannot encode a medium. With several
            prompts, the message gives the number of the prompt, counted from 0.
    """
    rows, pairs = [], []
    for number, (prompt, pixels) in enumerate(zip(prompts, media, strict=True)):
        try:
            ids, own = _expand_prompt(prompt, pixels, tokenizer, config)
        except PromptError as error:
            if len(prompts) == 1:
                raise
            raise PromptError(f"request {number}: {error}") from error
        rows.append(ids)
        pairs.append(own)
    return rows, pairs


def _expand_prompt(
    prompt: Prompt, pixels: Sequence[torch.Tensor], tokenizer: Any, config: VideoLlama2Config
) -> tuple[list[int], list[tuple[str, torch.Tensor]]]:
    kinds = [tag.strip("<>") for tag in prompt.tags]
    if len(kinds) != len(pixels):
        raise PromptError(f"the prompt names {len(kinds)} media but {len(pixels)} are given")
    media = list(zip(kinds, pixels, strict=True))
    counts = [media_tokens(config, kind, check_medium(item, kind, config)) for kind, item in media]
    return expand_placeholders(prompt.token_ids(tokenizer), counts, config)[0], media


def padding_id(tokenizer: Any) -> int:
    """Return the padding id. Published Llama-3 tokenizers have none, but any id will do, since the mask hides it."""
    return next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)


def pad_rows(rows: Sequence[Sequence[int]], value: int, side: str, length: int | None = None) -> torch.Tensor:
    """Pad rows with ``value`` on the ``left`` or ``right`` to (B, L); L is ``length``, or that of the longest row."""
    length = max(length or 0, *map(len, rows))
    padded = torch.full((len(rows), length), value, dtype=torch.long)
    for row, target in zip(rows, padded, strict=True):
        target[slice(length - len(row), None) if side == "left" else slice(len(row))] = torch.tensor(
            row, dtype=torch.long
        )
    return padded


def collate(
    rows: Sequence[Sequence[int]],
    media: Sequence[Sequence[tuple[str, torch.Tensor]]],
    pad_token_id: int,
    side: str,
    labels: Sequence[Sequence[int]] | None = None,
    length: int | None = None,
) -> dict[str, Any]:
    """Collate expanded rows and their media into one batch.

    Args:
        rows: ids with placeholders, one list per sample.
        media: for each sample, ``(kind, values)`` in reading order, see :func:`check_medium`.
        side: side of the padding; ``left`` for generation, ``right`` for training.
        length: length of the padded rows, if it exceeds that of the longest row.

    Returns:
        ``input_ids``, ``attention_mask`` (B, L) and, if given, ``labels``. For the kinds of media that the batch has:
        ``pixel_values`` (images, C, H, W); ``pixel_values_videos`` (videos, T, C, H, W), or a list if the numbers of
        frames differ; ``input_features`` (sounds, T, F), or a list of (T, F) if lengths differ.

    Raises:
        PromptError: media have different heights or widths.
    """
    batch: dict[str, Any] = {
        "input_ids": pad_rows(rows, pad_token_id, side, length),
        "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, side, length),
    }
    if labels is not None:
        batch["labels"] = pad_rows(labels, IGNORE_INDEX, side, length)
    flat = [item for sample in media for item in sample]
    # Images and videos run through the encoder together, so they need one height and width; numbers of frames may
    # differ.
    sizes = sorted({tuple(pixels.shape[-2:]) for kind, pixels in flat if kind != AUDIO})
    if len(sizes) > 1:
        found = " and ".join(f"{height}x{width}" for height, width in sizes)
        raise PromptError(f"the pixels of one batch must have one size, got {found}")
    images = [pixels for kind, pixels in flat if kind == IMAGE]
    videos = [pixels for kind, pixels in flat if kind == VIDEO]
    if images:
        batch[KINDS[IMAGE].batch_key] = torch.cat(images)
    if videos:
        same = len({video.shape[0] for video in videos}) == 1
        batch[KINDS[VIDEO].batch_key] = torch.stack(videos) if same else videos
    sounds = [fbank_1TF for kind, fbank_1TF in flat if kind == AUDIO]
    if sounds:
        same = len({fbank_1TF.shape for fbank_1TF in sounds}) == 1
        batch[KINDS[AUDIO].batch_key] = torch.cat(sounds) if same else [fbank_1TF[0] for fbank_1TF in sounds]
    return batch
