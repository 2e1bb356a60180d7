"""Reads a prompt as programs written for the published code pass it: ids with a negative sentinel for each medium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from videollama2.errors import PromptError
from videollama2.media.kinds import KINDS

PublishedMedium = tuple[torch.Tensor | Mapping[str, torch.Tensor], str]
"""Values of the processor and their kind: pixels (T, C, H, W) and ``video``, or the two tensors of a heard video."""

_SENTINELS = frozenset(kind.sentinel for kind in KINDS.values())


def embed_published(model: Any, ids_1L: torch.Tensor | None, media: Sequence[PublishedMedium]) -> torch.Tensor:
    """Return the embeddings (1, L', D) of a prompt, with the tokens of each medium in the place of its sentinel.

    Args:
        model: a :class:`~videollama2.model.modeling.VideoLlama2Model`.
        ids_1L: result of :func:`videollama2.mm_utils.tokenizer_multimodal_token`, as one row.
        media: media in reading order; a kind may also be written as its tag, ``<video>``.

    Raises:
        PromptError: there are several rows, more or fewer media than sentinels, or an unknown kind.
    """
    if ids_1L is None or ids_1L.dim() != 2 or ids_1L.shape[0] != 1:
        given = "none" if ids_1L is None else f"ids of shape {tuple(ids_1L.shape)}"
        raise PromptError(f"images= takes ids of shape (1, length), got {given}")
    device = model.get_input_embeddings().weight.device
    count = sum(token in _SENTINELS for token in ids_1L[0].tolist())
    if count != len(media):
        raise PromptError(f"the prompt has {count} sentinel(s) for media but {len(media)} are given in images=")
    remaining = iter(media)
    ids: list[int] = []
    tokens: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for token in ids_1L[0].tolist():
        if token not in _SENTINELS:
            ids.append(token)
            continue
        for kind, values in _parts(next(remaining)):
            (tokens_ND,) = model.encode_media(kind, [values.to(device)])
            tokens[kind].append(tokens_ND)
            ids += [getattr(model.config, KINDS[kind].token_id_field)] * len(tokens_ND)
    return model.embed(torch.tensor([ids], device=device), *tokens.values())


def _parts(medium: PublishedMedium) -> list[tuple[str, torch.Tensor]]:
    """Return a medium as pairs of kind and values: one, or the frames and the sound of a video."""
    values, name = medium
    kind = name.strip("<>")
    if kind not in KINDS:
        raise PromptError(f"images= holds a medium of kind {name!r}; the kinds are {', '.join(KINDS)}")
    return list(values.items()) if isinstance(values, Mapping) else [(kind, values)]
