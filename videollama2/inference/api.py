"""Offers ``model_init`` and ``mm_infer``, the published functions, on any device, for one question or many at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch

from videollama2.checkpoints import load_pretrained_model
from videollama2.constants import DEFAULT_MODEL_NAME
from videollama2.errors import CheckpointNotFoundError, ConfigError
from videollama2.inference.answer import Result
from videollama2.inference.engine import Engine
from videollama2.inference.generate_options import generation_options, sampling_options
from videollama2.inference.media.cache import MediaCache
from videollama2.inference.media.encoder import MediaEncoder
from videollama2.inference.media.reader import ReadMedium, medium_key
from videollama2.inference.prefix_cache import PrefixCache
from videollama2.inference.request import Request, split_sounds
from videollama2.inference.sampling import end_ids
from videollama2.inference.sizes import fitting_slots
from videollama2.inference.weights_watch import WeightsWatch, media_modules
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, VIDEO
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor, check_medium, collate, expand_prompts, padding_id
from videollama2.prompting import Message, Prompt, build_prompt, user_messages

_GENERATE_ONLY = frozenset(("length_penalty", "logits_processor", "stopping_criteria"))
"""Options that, like beam search, the engine does not support; transformers' ``generate`` handles them."""

PREFIX_BYTES = 256 << 20
"""Maximum size of the prefix cache kept per model between calls: enough for two clips of a 7B model in bfloat16, or
ten clips of a 0.5B model in float32."""


class _Kept:
    """The caches of a model that are kept between calls."""

    def __init__(self, model: VideoLlama2ForConditionalGeneration) -> None:
        self.media, self.prefixes = MediaCache(), PrefixCache(PREFIX_BYTES)
        self._media_weights = WeightsWatch(media_modules(model), walk=True)
        self._weights = WeightsWatch([model], walk=True)

    def refresh(self) -> None:
        """Empty the caches whose contents were computed with other weights."""
        if self._media_weights.changed():
            self.media.clear()
        if self._weights.changed():
            self.prefixes.clear()


_kept: WeakKeyDictionary[torch.nn.Module, _Kept] = WeakKeyDictionary()


def model_init(
    model_path: str | Path | None = None, **kwargs: Any
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor, Any]:
    """Open a model. The function and its return value are as published.

    Args:
        model_path: ``videollama2-tiny``, a folder or a hub name; defaults to ``DAMO-NLP-SG/VideoLLaMA2-7B``.
        kwargs: options of :func:`videollama2.checkpoints.load_pretrained_model`: ``model_base``, ``device``, ``dtype``,
            ``attn_implementation``, ``load_8bit``, ``load_4bit``, ``device_map``, hub options.

    Returns:
        model, processor (``processor["video"](path)``, ``processor["image"](path)``, ``processor["audio"](path)``),
        tokenizer.

    Raises:
        CheckpointNotFoundError: nothing of this name exists.
        ConfigError: the name is empty.
    """
    name = DEFAULT_MODEL_NAME if model_path is None else model_path
    _check_name(name, "model_path")
    if kwargs.get("model_base") is not None:
        _check_name(kwargs["model_base"], "model_base")
    tokenizer, model, processor, _ = load_pretrained_model(name, **kwargs)
    return model, processor, tokenizer


def _check_name(name: str | Path, option: str) -> None:
    """Refuse values that can be neither a folder nor a hub name; loading reports names that do not exist."""
    if not os.fspath(name):
        raise ConfigError(f"{option} is empty: give a folder or a hub name")
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    except OSError as error:
        raise CheckpointNotFoundError(f"{name}: {option} cannot be opened ({error.strerror})") from error


def media_cache(model: VideoLlama2ForConditionalGeneration) -> MediaCache:
    """Return the cache of visual tokens of ``model``, emptied if an encoder or connector has changed.

    Clear it yourself after a change that :class:`WeightsWatch` cannot detect.
    """
    return _refreshed(model).media


def prefix_cache(model: VideoLlama2ForConditionalGeneration) -> PrefixCache:
    """Return the prefix cache of ``model``, emptied if any of its weights have changed.

    Its key-values are on the model's device and take at most :data:`PREFIX_BYTES`. ``prefix_cache(model).clear()``
    frees them.
    """
    return _refreshed(model).prefixes


def _refreshed(model: VideoLlama2ForConditionalGeneration) -> _Kept:
    if model not in _kept:
        _kept[model] = _Kept(model)
    kept = _kept[model]
    kept.refresh()
    return kept


def mm_infer(
    image_or_video: torch.Tensor | Sequence[torch.Tensor] | None,
    instruct: str | Sequence[dict[str, Any]],
    model: VideoLlama2ForConditionalGeneration,
    tokenizer: Any,
    modal: str | Sequence[str] = VIDEO,
    **kwargs: Any,
) -> str:
    """Answer one question about one medium. The function is as published.

    Args:
        image_or_video: pixels from ``processor["video"]`` (T, C, H, W) or ``processor["image"]`` (1, C, H, W), the
            filter bank from ``processor["audio"]`` (1, T, F), or a video with its sound from
            ``processor["video"](path, va=True)``. A list of them if ``modal`` is a list; ignored if ``modal="text"``.
        instruct: the question, or messages ``{"role", "content"}``, the first of which is about the medium.
        modal: ``video`` (with or without its sound), ``image``, ``audio`` or ``text``; or a list, one per medium.
        kwargs: generation options: ``do_sample`` (default False), ``temperature``, ``top_p``, ``max_new_tokens``
            (default 2048), ``num_beams``, ``repetition_penalty``, ``stop_strings``, ``streamer`` and others of
            ``generate``.

    Returns:
        The answer, without special tokens and surrounding white space.

    Raises:
        PromptError: messages are invalid, or pixels have the wrong shape.
        ConfigError: an option is unknown.
    """
    if isinstance(modal, str):
        media: list[Any] = [] if modal == "text" else [image_or_video]
    else:
        media = list(image_or_video or ())
    return mm_infer_batch([(media, instruct, modal)], model, tokenizer, **kwargs)[0]


def mm_infer_batch(
    requests: Sequence[tuple[Sequence[torch.Tensor], str | Sequence[dict[str, Any]], str | Sequence[str]]],
    model: VideoLlama2ForConditionalGeneration,
    tokenizer: Any,
    **kwargs: Any,
) -> list[str]:
    """Answer several questions in one batch; each answer is the same as if its request were alone.

    Args:
        requests: tuples ``(media, instruct, modal)``: the processor's outputs for the media, in reading order; the
            question or messages; and ``text``, ``image``, ``video``, ``audio`` or a list of the latter three, one per
            medium.
        kwargs: options as in :func:`mm_infer`, for all requests.

    Raises:
        PromptError, ConfigError: see :func:`mm_infer`; with several requests, the message gives the number of the
            request, counted from 0.
    """
    if not requests:
        return []
    options = generation_options(tokenizer, **kwargs)
    prompter = _Prompter(model, tokenizer)
    conversations = [user_messages(instruct, modal) for _, instruct, modal in requests]
    given = [list(media) for media, _, _ in requests]
    split = [split_sounds(messages, own) for messages, own in zip(conversations, given, strict=True)]
    prompts, media = [prompter.prompt(messages) for messages, _ in split], [own for _, own in split]
    if options.get("num_beams", 1) > 1 or any(options.get(name) is not None for name in _GENERATE_ONLY):
        return _by_generate(prompts, media, model, tokenizer, options)
    rows, _ = expand_prompts(prompts, media, tokenizer, model.config)
    length = max(map(len, rows)) + options["max_new_tokens"]
    # The engine is closed afterwards, because a call in the middle of training must leave the model's modes unchanged.
    with Engine(
        model,
        cast("VideoLlama2Processor", prompter),
        max_batch=min(len(requests), fitting_slots(model, length)),
        max_length=length,
        max_queue=len(requests),
        media_cache_bytes=media_cache(model),
        prefix_cache_bytes=prefix_cache(model),
        background=False,
    ) as engine:
        asked = [
            Request(messages, own, **sampling_options(model, options))
            for messages, own in zip(conversations, given, strict=True)
        ]
        streamer = options.get("streamer")
        results = engine.generate(asked) if streamer is None else [_stream(engine, asked, streamer)]
    answers = []
    for result in results:
        if result.error is not None:
            raise result.error
        # With stop strings, this is the text before them; else all tokens are decoded at once, as published.
        text = result.text
        if not options.get("stop_strings"):
            text = tokenizer.decode(result.token_ids, skip_special_tokens=True)
        answers.append(text.strip())
    return answers


class _Prompter:
    """The part of a processor that the engine needs if media are given as pixels; published calls pass no processor."""

    def __init__(self, model: VideoLlama2ForConditionalGeneration, tokenizer: Any) -> None:
        self.tokenizer, self.model_config = tokenizer, model.config

    def prompt(self, messages: Sequence[Message], **options: Any) -> Prompt:
        return build_prompt(messages, self.tokenizer, self.model_config.text_config.model_type, **options)


def _stream(engine: Engine, requests: Sequence[Request], streamer: Any) -> Result:
    """Answer one request and pass each token to a transformers streamer as soon as it is chosen.

    Raises:
        ConfigError: there are several requests.
    """
    if len(requests) != 1:
        raise ConfigError(f"a streamer takes the tokens of one answer, there are {len(requests)} questions")
    answer = engine.submit_request(requests[0])
    told = 0
    while (result := answer.outcome()) is None:
        engine.step()
        for token in answer.channel.logprobs[told:]:
            streamer.put(torch.tensor([token.token_id]))
        told = len(answer.channel.logprobs)
    streamer.end()
    return result


def _by_generate(
    prompts: Sequence[Prompt],
    media: Sequence[Sequence[torch.Tensor]],
    model: VideoLlama2ForConditionalGeneration,
    tokenizer: Any,
    options: dict[str, Any],
) -> list[str]:
    """Answer requests that need beams or the caller's own processors or criteria with ``generate``, as one batch."""
    options.setdefault("eos_token_id", end_ids(model, tokenizer) or None)
    with torch.inference_mode():
        embeds_BLD, attention_mask = embed_prompts(prompts, media, model, tokenizer)
        # transformers describes the models that can generate by a protocol that its own classes do not fulfil.
        output_ids = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            inputs_embeds=embeds_BLD, attention_mask=attention_mask, **options
        )
    return [text.strip() for text in tokenizer.batch_decode(output_ids, skip_special_tokens=True)]


def embed_prompts(
    prompts: Sequence[Prompt],
    media: Sequence[Sequence[torch.Tensor]],
    model: VideoLlama2ForConditionalGeneration,
    tokenizer: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed prompts with their media; returns embeddings (B, L, D) and mask (B, L), left-padded, on the model's device.

    Known media come from the model's cache; the others are encoded together.
    """
    rows, pairs = expand_prompts(prompts, media, tokenizer, model.config)
    tokens: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for kind, tokens_ND in encode_media([pair for own in pairs for pair in own], model):
        tokens[kind].append(tokens_ND)
    batch = collate(rows, [], padding_id(tokenizer), "left")
    device = model.get_input_embeddings().weight.device
    embeds = model.model.embed(batch["input_ids"].to(device), tokens[IMAGE], tokens[VIDEO], tokens[AUDIO])
    return embeds, batch["attention_mask"].to(device)


def encode_media(
    media: Sequence[tuple[str, torch.Tensor]], model: VideoLlama2ForConditionalGeneration
) -> list[tuple[str, torch.Tensor]]:
    """Encode ``(kind, values)`` into ``(kind, tokens_ND)`` in the same order; each distinct medium is encoded once.

    The tokens are detached from autograd, whether cached or new, and may also be used in training. A training step
    whose gradients are to reach the connector must pass pixels to the model itself.
    """
    read = [
        ReadMedium(kind, medium_key(model, kind, values), check_medium(values, kind, model.config), values)
        for kind, values in media
    ]
    MediaEncoder(model, media_cache(model)).encode(read)
    return [(medium.kind, medium.encoded) for medium in read]
