"""Arguments of the processor's calls, as transformers' callers give them, in one form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from videollama2.errors import ConfigError, PromptError
from videollama2.media.kinds import AUDIO, IMAGE, TAGS, VIDEO
from videollama2.prompting import Prompt


def continues(continue_final_message: bool | str, add_generation_prompt: bool) -> bool:
    """transformers takes the name of a field too; the text of a message is its content."""
    if continue_final_message not in (True, False, None, "content"):
        raise ConfigError(f"continue_final_message must be True, False or 'content', got {continue_final_message!r}")
    if continue_final_message and add_generation_prompt:
        raise ConfigError("continue_final_message and add_generation_prompt do not go together")
    return bool(continue_final_message)


def as_list(value: Any) -> list[Any]:
    """One medium, a list of them or None -> a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def as_media(value: torch.Tensor | dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return what a processor made of one medium as the one or two media it is to the model, a video's sound second."""
    return [value[VIDEO], value[AUDIO]] if isinstance(value, dict) else [value]


def in_reading_order(images: list[Any], prompts: Sequence[Prompt]) -> list[Any]:
    """One list of images, from one list or from one list per text."""
    nested = [isinstance(item, (list, tuple)) for item in images]
    if not any(nested):
        return images
    if not all(nested) or len(images) != len(prompts):
        raise PromptError(
            f"images must be one flat list, or one list per text; got {len(images)} items, "
            f"{sum(nested)} of them lists, for {len(prompts)} text(s)"
        )
    for number, (own, prompt) in enumerate(zip(images, prompts, strict=True)):
        wanted = prompt.tags.count(TAGS[IMAGE])
        if wanted != len(own):
            raise PromptError(f"text {number} holds {wanted} {TAGS['image']} tag(s) but {len(own)} are given")
    return [image for own in images for image in own]


def split_tags(text: str) -> Prompt:
    """Call form of transformers: here the caller wrote the tags on purpose."""
    pieces = re.split("(" + "|".join(map(re.escape, TAGS.values())) + ")", text)
    return Prompt(tuple(pieces[::2]), tuple(pieces[1::2]))
