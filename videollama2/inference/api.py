"""``model_init`` and ``mm_infer``: the published functions, on any device, for one question or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from videollama2.errors import ConfigError, PromptError
from videollama2.inference.media_cache import MediaCache, content_key
from videollama2.loading import load_pretrained_model
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import (
    VideoLlama2Processor,
    check_pixels,
    collate,
    expand_placeholders,
    padding_id,
    visual_tokens,
)
from videollama2.prompting import Prompt, build_prompt, user_messages

DEFAULT_MODEL = "DAMO-NLP-SG/VideoLLaMA2-7B"

# Published defaults: greedy; when sampling, temperature 0.2 and top_p 0.9.
_SAMPLING_DEFAULTS = {"temperature": 0.2, "top_p": 0.9}
_MAX_NEW_TOKENS = 2048
_GENERATION_OPTIONS = {
    *("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size", "length_penalty"),
    *("max_new_tokens", "min_new_tokens", "num_beams", "use_cache", "stop_strings", "streamer"),
    *("eos_token_id", "pad_token_id", "logits_processor", "stopping_criteria"),
}

_caches: WeakKeyDictionary[torch.nn.Module, MediaCache] = WeakKeyDictionary()


def model_init(
    model_path: str | Path | None = None, **kwargs: Any
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor, Any]:
    """Open a model (published function).

    Args:
        model_path: ``videollama2-tiny``, a folder or a hub name; default ``DAMO-NLP-SG/VideoLLaMA2-7B``.
        kwargs: of :func:`videollama2.loading.load_pretrained_model`: ``model_base``, ``device``, ``dtype``,
            ``attn_implementation``, ``load_8bit``, ``load_4bit``, ``device_map``, hub options.

    Returns:
        model, processor (``processor["video"](path)``, ``processor["image"](path)``), tokenizer.
    """
    tokenizer, model, processor, _ = load_pretrained_model(model_path or DEFAULT_MODEL, **kwargs)
    return model, processor, tokenizer


def media_cache(model: VideoLlama2ForConditionalGeneration) -> MediaCache:
    """The cache of visual tokens that belongs to ``model``; clear it after changing weights."""
    return _caches.setdefault(model, MediaCache())


def mm_infer(
    image_or_video: torch.Tensor | None,
    instruct: str | Sequence[dict[str, Any]],
    model: VideoLlama2ForConditionalGeneration,
    tokenizer: Any,
    modal: str = "video",
    **kwargs: Any,
) -> str:
    """Answer one question about one medium (published function).

    Args:
        image_or_video: pixels from ``processor["video"]`` (T, C, H, W) or ``processor["image"]`` (1, C, H, W);
            ignored for ``modal="text"``.
        instruct: the question, or messages ``{"role", "content"}`` of which the first is about the medium.
        modal: ``video``, ``image`` or ``text``.
        kwargs: generation options: ``do_sample`` (default False), ``temperature``, ``top_p``, ``max_new_tokens``
            (default 2048), ``num_beams``, ``repetition_penalty``, ``stop_strings``, ``streamer`` and others of
            ``generate``.

    Returns:
        the answer, without special tokens and surrounding blanks.

    Raises:
        PromptError: bad messages, or pixels of a wrong shape. ConfigError: an unknown option.
    """
    media = [] if modal == "text" else [image_or_video]
    return mm_infer_batch([(media, instruct, modal)], model, tokenizer, **kwargs)[0]


def mm_infer_batch(
    requests: Sequence[tuple[Sequence[torch.Tensor], str | Sequence[dict[str, Any]], str | Sequence[str]]],
    model: VideoLlama2ForConditionalGeneration,
    tokenizer: Any,
    **kwargs: Any,
) -> list[str]:
    """Answer several questions in one batch; each answer is the one its request gets alone.

    Args:
        requests: ``(media, instruct, modal)`` each: pixels in reading order, question or messages, and ``text``,
            ``image``, ``video`` or a list of the latter two, one per medium.
        kwargs: as in :func:`mm_infer`, for all.
    """
    if not requests:
        return []
    options = generation_options(tokenizer, **kwargs)
    options.setdefault("eos_token_id", _end_ids(model, tokenizer))
    prompts, media = [], []
    for pixels, instruct, modal in requests:
        messages = user_messages(instruct, modal)
        prompts.append(build_prompt(messages, tokenizer, model.config.text_config.model_type))
        media.append(list(pixels))
    with torch.inference_mode():
        embeds_BLD, attention_mask = embed_prompts(prompts, media, model, tokenizer)
        output_ids = model.generate(inputs_embeds=embeds_BLD, attention_mask=attention_mask, **options)
    return [text.strip() for text in tokenizer.batch_decode(output_ids, skip_special_tokens=True)]


def embed_prompts(
    prompts: Sequence[Prompt],
    media: Sequence[Sequence[torch.Tensor]],
    model: VideoLlama2ForConditionalGeneration,
    tokenizer: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with their media -> embeddings (B, L, D) and mask (B, L), padded on the left, on the model's device.

    Media seen before come from the model's cache; the others are encoded together.
    """
    config = model.config
    rows = []
    tokens: dict[str, list[torch.Tensor]] = {"image": [], "video": []}
    for prompt, pixels in zip(prompts, media, strict=True):
        kinds = [tag.strip("<>") for tag in prompt.tags]
        if len(kinds) != len(pixels):
            raise PromptError(f"the prompt names {len(kinds)} media but {len(pixels)} are given")
        counts = [
            visual_tokens(config, kind, _frames(item, kind)) for kind, item in zip(kinds, pixels, strict=True)
        ]
        rows.append(expand_placeholders(prompt.token_ids(tokenizer), counts, config)[0])
    encoded = encode_media(
        [(tag.strip("<>"), item) for prompt, pixels in zip(prompts, media, strict=True)
         for tag, item in zip(prompt.tags, pixels, strict=True)],
        model,
    )  # fmt: skip
    for kind, tokens_ND in encoded:
        tokens[kind].append(tokens_ND)
    batch = collate(rows, [], padding_id(tokenizer), "left")
    device = model.get_input_embeddings().weight.device
    embeds = model.model.embed(batch["input_ids"].to(device), tokens["image"], tokens["video"])
    return embeds, batch["attention_mask"].to(device)


def encode_media(
    media: Sequence[tuple[str, torch.Tensor]], model: VideoLlama2ForConditionalGeneration
) -> list[tuple[str, torch.Tensor]]:
    """``(kind, pixels_TCHW)`` -> ``(kind, tokens_ND)`` in the same order; each distinct medium is encoded once."""
    cache = media_cache(model)
    keys = [content_key(kind, pixels) for kind, pixels in media]
    known = {key: cache.get(key) for key in dict.fromkeys(keys)}
    for kind, encode in (("image", model.get_image_features), ("video", model.get_video_features)):
        new = {key: pixels for key, (k, pixels) in zip(keys, media, strict=True) if k == kind and known[key] is None}
        if not new:
            continue
        pixels = torch.cat(list(new.values())) if kind == "image" else list(new.values())
        for key, tokens_ND in zip(new, encode(pixels).pooler_output, strict=True):
            # A view would keep the whole batch alive for as long as one of its members is cached.
            known[key] = tokens_ND.clone()
            cache.put(key, known[key])
    return [(kind, known[key]) for key, (kind, _) in zip(keys, media, strict=True)]


def _end_ids(model: VideoLlama2ForConditionalGeneration, tokenizer: Any) -> list[int] | None:
    """The ends of the generation configuration and the tokenizer's own.

    The published code stops at the tokenizer's; checkpoints tuned from a base model may only name that model's.
    """
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(ends - {None}) or None


def _frames(pixels: Any, kind: str) -> int:
    if not torch.is_tensor(pixels):
        raise PromptError(f"a {kind} must be pixels made by processor[{kind!r}], got {type(pixels).__name__}")
    return check_pixels(pixels, kind)


def generation_options(tokenizer: Any, **kwargs: Any) -> dict[str, Any]:
    """Options of ``mm_infer`` -> arguments of ``generate``, with the published defaults.

    Raises:
        ConfigError: an option ``generate`` would not know, or a value out of range.
    """
    unknown = set(kwargs) - _GENERATION_OPTIONS
    if unknown:
        raise ConfigError(
            f"unknown option {', '.join(sorted(unknown))}; known: {', '.join(sorted(_GENERATION_OPTIONS))}"
        )
    options = {"max_new_tokens": _MAX_NEW_TOKENS, "use_cache": True, "pad_token_id": tokenizer.eos_token_id, **kwargs}
    if not isinstance(options["max_new_tokens"], int) or options["max_new_tokens"] < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {options['max_new_tokens']}")
    sampling = options.setdefault("do_sample", False)
    if sampling:
        options = {**_SAMPLING_DEFAULTS, **options}
        if not 0 < options["temperature"] < float("inf"):
            raise ConfigError(f"sampling needs a temperature above 0, got {options['temperature']}")
        if not 0 < options["top_p"] <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {options['top_p']}")
    else:
        # None switches off what a checkpoint's generation_config.json may hold for sampling.
        options.update(temperature=None, top_p=None, top_k=None)
    if "stop_strings" in options:
        options["tokenizer"] = tokenizer
    return options
