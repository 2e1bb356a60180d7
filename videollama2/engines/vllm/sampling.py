"""Translates sampling options of this package into vLLM's. Needs no vLLM."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from videollama2.errors import ConfigError
from videollama2.inference.sampling import SamplingOptions
from videollama2.inference.structure import lark_of


def sampling_fields(options: SamplingOptions, budget: int, end_ids: Collection[int], tokenizer: Any) -> dict[str, Any]:
    """Return the fields of vLLM's ``SamplingParams``; ``grammar`` becomes its structured output.

    Text is made here and not by vLLM, so that stop texts and special tokens are treated alike on all engines.

    Args:
        budget: maximum length of the answer.
        end_ids: the model's end-of-text tokens.

    Raises:
        ConfigError: vLLM has no such option.
    """
    if options.no_repeat_ngram_size:
        raise ConfigError("no_repeat_ngram_size is not supported by vLLM")
    ends = end_ids if options.end_ids is None else options.end_ids
    return {
        "max_tokens": budget,
        "min_tokens": min(options.min_new_tokens, budget),
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        # vLLM applies this one to the tokens of the prompt too.
        "repetition_penalty": options.repetition_penalty or 1.0,
        "frequency_penalty": options.frequency_penalty,
        "presence_penalty": options.presence_penalty,
        "logit_bias": dict(options.logit_bias) or None,
        "seed": options.seed,
        "logprobs": options.logprobs,
        "ignore_eos": True,  # the ends are named here
        "stop_token_ids": [] if options.ignore_eos else sorted(ends),
        "detokenize": False,
        "grammar": None if options.structure is None else lark_of(options.structure, tokenizer),
    }
