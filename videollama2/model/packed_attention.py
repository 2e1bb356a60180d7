"""Separates packed rows: several records one after another, each of which attends to itself alone.

A packed batch is a single row (1, L) without padding. Positions start anew with each record. How records are kept apart
depends on the decoder's attention: flash attention takes their boundaries, flex and eager attention build a block mask
from the positions, and for sdpa, which would need a dense mask, :func:`sdpa_by_record` calls it once per record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from videollama2.errors import ConfigError

SDPA_BY_RECORD = "sdpa_by_record"
"""Name of :func:`sdpa_by_record` among the attention implementations of transformers."""

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def packed_inputs(lengths: Sequence[int]) -> dict[str, Any]:
    """Return the inputs of the model that separate the records of a packed row.

    Args:
        lengths: number of tokens of each record in the row, in order.

    Returns:
        ``position_ids`` (1, L), for every implementation; ``record_lengths``, a list on the CPU, for
        :func:`sdpa_by_record`; ``cu_seq_lens_q`` and ``cu_seq_lens_k`` (records + 1), ``max_length_q`` and
        ``max_length_k``, for flash attention; ``use_cache`` is off, because with a cache no block mask would be made.
    """
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    longest = max(lengths)
    return {
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "record_lengths": list(lengths),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }


def sdpa_by_record(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    record_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' sdpa does, but within each record of a packed row.

    No mask is needed, so that a GPU uses its flash kernel, and pairs of tokens of different records cost nothing.

    Args:
        query, key, value: (B, heads, L, head width); B is 1 for a packed row.
        record_lengths: see :func:`packed_inputs`; None for rows that hold one record each.

    Returns:
        the attended values (B, L, heads, head width), and None in place of attention weights.
    """
    if record_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # Each call is causal by itself and sees one record, so nothing needs to be masked.
    queries, keys, values = (states.split(list(record_lengths), dim=2) for states in (query, key, value))
    parts = zip(queries, keys, values, strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in parts], dim=1), None


AttentionInterface.register(SDPA_BY_RECORD, sdpa_by_record)


def keep_records_apart(decoder: PreTrainedModel, longest: int) -> None:
    """Choose the attention with which a decoder can read packed rows.

    Args:
        longest: the largest number of tokens of a record.

    Raises:
        ConfigError: the decoder's layers would mix neighbouring records.
    """
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if not getattr(decoder, "_supports_attention_backend", False) or kinds - _KNOWN_LAYERS:
        found = ", ".join(sorted(kinds - _KNOWN_LAYERS)) or "attention of its own"
        raise ConfigError(f"--packing: the {config.model_type} decoder has {found}, which mixes neighbouring records")
    # All other implementations keep records apart by their positions or boundaries, see the module's docstring.
    if config._attn_implementation != "sdpa":
        return
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest:
        raise ConfigError(
            f"--packing: sdpa has no sliding window, and the {config.model_type} decoder's is {window}; give "
            f"--model_max_length {window} or less, or another --attn_implementation"
        )
    decoder.set_attn_implementation(SDPA_BY_RECORD)
