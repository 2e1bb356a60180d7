"""Makes one batch of prompts and their media, truncated and padded according to transformers' call options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from videollama2.config import VideoLlama2Config
from videollama2.errors import ConfigError, PromptError
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, TAGS, VIDEO
from videollama2.processing.options import TextOptions
from videollama2.processing.placeholders import (
    check_medium,
    collate,
    expand_prompts,
    media_tokens,
    pad_rows,
    padding_id,
)
from videollama2.prompting import Prompt

_TYPES = {IMAGE: 1, VIDEO: 2, AUDIO: 3}
"""The numbers of kinds in transformers' ``mm_token_type_ids``; 0 is text."""


def batch_of(
    prompts: Sequence[Prompt],
    media: Sequence[Sequence[torch.Tensor]],
    tokenizer: Any,
    config: VideoLlama2Config,
    options: TextOptions,
    answered: Sequence[Sequence[bool]] | None = None,
) -> dict[str, Any]:
    """Make the inputs of a forward pass.

    Args:
        media: media of each prompt, in the order of its tags.
        answered: for each prompt, which of its ids (see :meth:`Prompt.token_ids`) are answers of the assistant.

    Returns:
        ``input_ids``, ``attention_mask`` (B, L) and media inputs as :func:`collate` returns them; if requested,
        ``assistant_masks`` and ``mm_token_type_ids`` (B, L), and ``text_replacement_offsets``, a list per prompt.

    Raises:
        PromptError: media do not match the prompts, or a row cannot be truncated without cutting a medium.
        ConfigError: rows have different lengths but padding is off.
    """
    rows, pairs = expand_prompts(prompts, media, tokenizer, config)
    placeholders = {getattr(config, kind.token_id_field): _TYPES[name] for name, kind in KINDS.items()}
    # The masks go through the same steps as the rows (expand, add special tokens, cut, pad), so the two stay aligned.
    masks = [[0] * len(row) for row in rows]
    if answered is not None:
        masks = [
            _spread(row, prompt.token_ids(tokenizer), own, placeholders)
            for row, prompt, own in zip(rows, prompts, answered, strict=True)
        ]
    if options.add_special_tokens:
        before, behind = _tokens_around(tokenizer)
        rows = [[*before, *row, *behind] for row in rows]
        masks = [[*[0] * len(before), *mask, *[0] * len(behind)] for mask in masks]
    if options.truncation:
        kept = [_kept(number, row, tokenizer, options, placeholders) for number, row in enumerate(rows)]
        rows = [row[part] for row, part in zip(rows, kept, strict=True)]
        masks = [mask[part] for mask, part in zip(masks, kept, strict=True)]
    length = _length(rows, options)
    batch = collate(rows, pairs, padding_id(tokenizer), options.padding_side, length=length)
    if answered is not None:
        batch["assistant_masks"] = pad_rows(masks, 0, options.padding_side, length)
    if options.return_mm_token_type_ids:
        types = [[placeholders.get(token, 0) for token in row] for row in rows]
        batch["mm_token_type_ids"] = pad_rows(types, 0, options.padding_side, length)
    if not options.return_attention_mask:
        del batch["attention_mask"]
    batch = _converted(batch, rows, options)
    if options.return_text_replacement_offsets:
        batch["text_replacement_offsets"] = [
            _replacements(prompt, own, config) for prompt, own in zip(prompts, pairs, strict=True)
        ]
    return batch


def _spread(row: list[int], ids: list[int], flags: Sequence[bool], placeholders: dict[int, int]) -> list[int]:
    """Expand flags of the unexpanded ids to 0 or 1 per id of the expanded row; tokens of media are not answers."""
    of_text = iter([int(flag) for token, flag in zip(ids, flags, strict=True) if token >= 0])
    return [0 if token in placeholders else next(of_text) for token in row]


def _tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    # Found by trying, because tokenizers add them in different ways: by a field, a template or a post-processor.
    bare, whole = (tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
    start = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def _kept(number: int, row: list[int], tokenizer: Any, options: TextOptions, placeholders: dict[int, int]) -> slice:
    """Return the part of a row that remains after truncation to ``max_length``."""
    most = options.max_length or tokenizer.model_max_length
    if len(row) <= most:
        return slice(None)
    part = slice(len(row) - most, None) if tokenizer.truncation_side == "left" else slice(most)
    # A medium that is cut would leave fewer placeholders than the model makes tokens, so the row is refused. One that
    # is cut away whole is refused too: its pixels would be left over.
    visual = sum(token in placeholders for token in row)
    if sum(token in placeholders for token in row[part]) != visual:
        raise PromptError(
            f"text {number} has {len(row)} tokens, {visual} of them visual; cutting it to {most} (max_length) would "
            "cut a medium"
        )
    return part


def _length(rows: Sequence[Sequence[int]], options: TextOptions) -> int | None:
    """Return the length of the padded rows, or None if it is that of the longest row."""
    longest, shortest = max(map(len, rows)), min(map(len, rows))
    if options.padding == "max_length" and options.max_length is not None:
        if longest > options.max_length:
            raise ConfigError(f"a row has {longest} tokens, more than max_length {options.max_length}; give truncation")
        return options.max_length
    if options.padding == "none":
        if longest != shortest and options.return_tensors is not None:
            raise ConfigError(f"rows of {shortest} to {longest} tokens make no tensor without padding")
        return None
    step = options.pad_to_multiple_of or 1
    return -(-longest // step) * step


def _converted(batch: dict[str, Any], rows: Sequence[list[int]], options: TextOptions) -> dict[str, Any]:
    """Convert to tensors or arrays, or to lists if no type is requested (pixels remain tensors)."""
    if options.return_tensors == "pt":
        return batch
    if options.return_tensors == "np":
        return {
            name: value.numpy() if torch.is_tensor(value) else [item.numpy() for item in value]
            for name, value in batch.items()
        }
    lists = {name: value.tolist() for name, value in batch.items() if torch.is_tensor(value) and value.ndim == 2}
    if options.padding == "none":
        for name, lines in lists.items():
            lists[name] = [_unpadded(line, len(row), options) for line, row in zip(lines, rows, strict=True)]
    return {**batch, **lists}


def _unpadded(line: list[int], length: int, options: TextOptions) -> list[int]:
    return line[-length:] if options.padding_side == "left" else line[:length]


def _replacements(
    prompt: Prompt, media: Sequence[tuple[str, torch.Tensor]], config: VideoLlama2Config
) -> list[dict[str, Any]]:
    """Return for each medium the position of its tag in the prompt, and its position if repeated per visual token."""
    found = []
    place = grown = 0
    for chunk, tag, (kind, values) in zip(prompt.chunks, prompt.tags, media, strict=False):
        place, grown = place + len(chunk), grown + len(chunk)
        replacement = TAGS[kind] * media_tokens(config, kind, check_medium(values, kind, config))
        found.append(
            {
                "type": kind,
                "span": (place, place + len(tag)),
                "new_span": (grown, grown + len(replacement)),
                "text": tag,
                "replacement": replacement,
            }
        )
        place, grown = place + len(tag), grown + len(replacement)
    return found
