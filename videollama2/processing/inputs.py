"""Converts the various forms of arguments that callers of transformers pass to a processor into one form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from videollama2.errors import ConfigError, PromptError
from videollama2.media.kinds import AUDIO, IMAGE, TAGS, VIDEO
from videollama2.prompting import Prompt


def continues(continue_final_message: bool | str, add_generation_prompt: bool) -> bool:
    """Return whether the final message is to be continued.

    transformers also accepts the name of the field to continue; here it can only be the content of the message.
    """
    if continue_final_message not in (True, False, None, "content"):
        raise ConfigError(f"continue_final_message must be True, False or 'content', got {continue_final_message!r}")
    if continue_final_message and add_generation_prompt:
        raise ConfigError("continue_final_message and add_generation_prompt do not go together")
    return bool(continue_final_message)


def as_list(value: Any) -> list[Any]:
    """Return one medium, a list of media or None as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def as_media(value: torch.Tensor | Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return a processor's output for one medium as the model's media: one, or two for a video with its sound."""
    return [value[VIDEO], value[AUDIO]] if isinstance(value, Mapping) else [value]


def in_reading_order(images: list[Any], prompts: Sequence[Prompt]) -> list[Any]:
    """Return one list of images, given one list or one list per text."""
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
    """Return the prompt of a text in which tags mark media, as in calls of transformers' processors."""
    pieces = re.split("(" + "|".join(map(re.escape, TAGS.values())) + ")", text)
    return Prompt(tuple(pieces[::2]), tuple(pieces[1::2]))
