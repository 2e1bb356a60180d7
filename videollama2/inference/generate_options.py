"""Translates the published options of answers into arguments of ``generate``, and these into options of a request."""

from __future__ import annotations

from typing import Any

import torch

from videollama2.errors import ConfigError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

# Published defaults: greedy; when sampling, temperature 0.2 and top_p 0.9.
_SAMPLING_DEFAULTS = {"temperature": 0.2, "top_p": 0.9}
_MAX_NEW_TOKENS = 2048
_TOP_K = 50
_GENERATION_OPTIONS = {
    *("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size", "length_penalty"),
    *("max_new_tokens", "min_new_tokens", "num_beams", "use_cache", "stop_strings", "streamer"),
    *("eos_token_id", "pad_token_id", "logits_processor", "stopping_criteria"),
}


def sampling_options(model: VideoLlama2ForConditionalGeneration, options: dict[str, Any]) -> dict[str, Any]:
    """Convert the result of :func:`generation_options` into options of a request; adds the default ``top_k``."""
    stop = options.get("stop_strings") or ()
    ends = options.get("eos_token_id")
    sampling = {
        "max_new_tokens": options["max_new_tokens"],
        "min_new_tokens": options.get("min_new_tokens") or 0,
        "repetition_penalty": options.get("repetition_penalty"),
        "no_repeat_ngram_size": options.get("no_repeat_ngram_size") or 0,
        "end_ids": None if ends is None else (ends,) if isinstance(ends, int) else tuple(ends),
        # A streamer needs token ids as they are chosen, and the engine reports ids only with log-probabilities.
        "logprobs": None if options.get("streamer") is None else 0,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
    }
    if options["do_sample"]:
        top_k = options.get("top_k")
        if top_k is None:
            # The published code leaves top_k to transformers, which takes the checkpoint's value, else 50.
            top_k = model.generation_config.top_k
        sampling.update(
            temperature=options["temperature"],
            top_p=options["top_p"],
            top_k=_TOP_K if top_k is None else top_k,
            # The seed is drawn from torch's generator, so that torch.manual_seed makes answers reproducible.
            seed=int(torch.randint(2**62, (1,))),
        )
    return sampling


def generation_options(tokenizer: Any, **kwargs: Any) -> dict[str, Any]:
    """Convert options of ``mm_infer`` into arguments of ``generate``, with the published defaults.

    Raises:
        ConfigError: ``generate`` has no such option, or a value is out of range.
    """
    unknown = set(kwargs) - _GENERATION_OPTIONS
    if unknown:
        raise ConfigError(
            f"unknown option {', '.join(sorted(unknown))}; known: {', '.join(sorted(_GENERATION_OPTIONS))}"
        )
    options = {"max_new_tokens": _MAX_NEW_TOKENS, "use_cache": True, "pad_token_id": tokenizer.eos_token_id, **kwargs}
    for name in ("max_new_tokens", "num_beams"):
        if not isinstance(options.get(name, 1), int) or options.get(name, 1) < 1:
            raise ConfigError(f"{name} must be at least 1, got {options[name]}")
    sampling = options.setdefault("do_sample", False)
    if sampling:
        options = {**_SAMPLING_DEFAULTS, **options}
        if not 0 < options["temperature"] < float("inf"):
            raise ConfigError(f"sampling needs a temperature above 0, got {options['temperature']}")
        if not 0 < options["top_p"] <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {options['top_p']}")
    else:
        # None overrides the sampling settings of the checkpoint's generation_config.json, if it has any.
        options.update(temperature=None, top_p=None, top_k=None)
    if "stop_strings" in options:
        options["tokenizer"] = tokenizer
    return options
