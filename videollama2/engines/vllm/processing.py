"""Processes requests in vLLM's front end: media become pixels and filter banks, markers become runs of fillers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import BatchFeature
from vllm.inputs import MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.processing.processor import MultiModalProcessingResult, PlaceholderFeaturesInfo

from videollama2.config import VideoLlama2Config
from videollama2.engines.vllm.media import AnySource, EncodedSound, SourceItems, SourceParser, with_videos, zero_medium
from videollama2.engines.vllm.prompts import Place, filler_id, split_prompt, text_marker
from videollama2.errors import ConfigError, VideoLlama2Error
from videollama2.media.frames import frames_or_own
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, SEEN, VIDEO
from videollama2.processing import VideoLlama2Processor, check_medium, media_tokens
from videollama2.processing.options import HEARD, CallOptions
from videollama2.processing.read_options import ReadOptions

_log = logging.getLogger(__name__)

_KIND_OF_KEY = {kind.batch_key: name for name, kind in KINDS.items()}


class VideoLlama2Info(BaseProcessingInfo):
    """The facts about the model's media that vLLM has to know."""

    def get_hf_config(self) -> VideoLlama2Config:
        return self.ctx.get_hf_config(VideoLlama2Config)

    def get_hf_processor(self, **kwargs: object) -> VideoLlama2Processor:
        # Options of requests are for reading media, not for building the processor.
        return self.ctx.get_hf_processor(VideoLlama2Processor)

    def get_data_parser(self) -> MultiModalDataParser:
        return SourceParser()

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        config = self.get_hf_config()
        seen: tuple[str, ...] = SEEN if config.sees else ()
        return dict.fromkeys((*seen, AUDIO) if config.hears else seen)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {kind: media_tokens(self.get_hf_config(), kind, self.frames(kind)) for kind in mm_counts}

    def frames(self, kind: str) -> int:
        """Return the number of frames of the largest medium for which memory is set aside.

        For videos it is ``--limit-mm-per-prompt '{"video": {"count": 1, "num_frames": 32}}'``, else the model's own.
        """
        config = self.get_hf_config()
        if kind == AUDIO:
            assert config.audio_config is not None  # a supported kind
            return config.audio_config.clip_frames
        limits = self.ctx.get_mm_config().limit_per_prompt.get(kind)
        return 1 if kind == IMAGE else frames_or_own(getattr(limits, "num_frames", None), config.num_frames)


class VideoLlama2DummyInputs(BaseDummyInputsBuilder[VideoLlama2Info]):
    """The blank media with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "".join(text_marker(kind, number) for kind, count in mm_counts.items() for number in range(count))

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        return {kind: [zero_medium(kind, self._shape(kind))] * count for kind, count in mm_counts.items() if count}

    def _shape(self, kind: str) -> tuple[int, ...]:
        config, frames = self.info.get_hf_config(), self.info.frames(kind)
        if kind == AUDIO:
            return (1, frames, config.hearing.num_mel_bins)
        side = config.sight.image_size
        return (frames, 3, side, side)


class VideoLlama2MediaProcessor(BaseMultiModalProcessor[VideoLlama2Info]):
    """Reads media with the package's own processor and lays out prompts as the package's own engine does."""

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Read media. ``mm_processor_kwargs`` of a request or of the server are options for reading.

        Raises:
            ValueError: a medium cannot be read, or not with these options; vLLM answers with status 400.
        """
        processor, dtype = self.info.get_hf_processor(), self.info.ctx.model_config.dtype
        merged = self.info.ctx.get_mm_config().merge_mm_processor_kwargs(hf_kwargs)
        read: dict[str, list[torch.Tensor]] = {}
        try:
            options = CallOptions.of(merged, processor.image_processor)
            for kind, items in mm_items.items():
                for source in items.get_all():
                    values = _loaded(processor, kind, source, options)
                    check_medium(values, kind, processor.model_config)
                    read.setdefault(KINDS[kind].batch_key, []).append(values.to(dtype))
        except VideoLlama2Error as error:
            raise ValueError(str(error)) from error
        return BatchFeature(read)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {key: MultiModalFieldConfig.batched(_KIND_OF_KEY[key]) for key in hf_inputs}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        """Return the runs of fillers. Their places are found by
        :meth:`_maybe_apply_prompt_updates`."""
        config, filler = self.info.get_hf_config(), filler_id(self.info.get_hf_processor().tokenizer)

        def runs(kind: str) -> list[list[int]]:
            key, frame_axis = KINDS[kind].batch_key, 1 if kind == AUDIO else 0
            values = [item[key].data for item in out_mm_kwargs[kind]]
            return [[filler] * media_tokens(config, kind, value.shape[frame_axis]) for value in values]

        return [
            PromptReplacement(modality=kind, target=[filler], replacement=runs(kind).__getitem__) for kind in mm_items
        ]

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        items = inputs.mm_data_items
        if inputs.hf_processor_mm_kwargs.get("use_audio_in_video") and {VIDEO, AUDIO} <= items.keys():
            sounds = SourceItems(with_videos(items[VIDEO].get_all(), items[AUDIO].get_all()), AUDIO)
            inputs = replace(inputs, mm_data_items=MultiModalDataItems({**items, AUDIO: sounds}))
        return super().apply(inputs, timing_ctx)

    def _maybe_apply_prompt_updates(
        self, mm_items: MultiModalDataItems, mm_res: MultiModalProcessingResult
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        """Put the runs of fillers where the markers are."""
        config, tokenizer = self.info.get_hf_config(), self.info.get_hf_processor().tokenizer
        counts = mm_items.get_all_counts()
        heard = mm_items[AUDIO].get_all() if AUDIO in mm_items else ()
        taken = [(at, each.video) for at, each in enumerate(heard) if isinstance(each, EncodedSound)]
        # A sound that belongs to a video has no marker of its own in the prompt: its run stands right behind that of
        # its video.
        sounds: dict[int, int] = {video: at for at, video in taken if video is not None}
        try:
            pieces = split_prompt(mm_res.prompt_ids, counts, tokenizer, config.vocab_size, sounds)
        except VideoLlama2Error as error:
            raise ValueError(str(error)) from error
        laid_out: list[int] = []
        found: dict[str, dict[int, PlaceholderFeaturesInfo]] = {kind: {} for kind in counts}
        for piece in pieces:
            if not isinstance(piece, Place):
                laid_out += piece
                continue
            run = mm_res.prompt_updates[piece.kind][piece.number][0].content.full
            found[piece.kind][piece.number] = PlaceholderFeaturesInfo(*piece, len(laid_out), run, None)
            laid_out += run
        placeholders = {kind: [places[number] for number in sorted(places)] for kind, places in found.items()}
        self._validate_mm_placeholders(placeholders, counts)
        return laid_out, placeholders


def _loaded(processor: VideoLlama2Processor, kind: str, source: AnySource, options: CallOptions) -> torch.Tensor:
    """Read one medium. The sound of a video is a medium of its own, with the bounds of the video."""
    if isinstance(source, EncodedSound) and source.of_video:
        read = {name: value for name, value in options.media[VIDEO].items() if name in ("start", "end", "windows")}
        fbank_1TF, note = processor.hear(source.content, ReadOptions.of(VIDEO, read).of_its_sound)
        if note is not None:
            _log.info("%s", note)
        return fbank_1TF
    if isinstance(source, EncodedSound):
        source = source.content
    given = {name: value for name, value in options.media[kind].items() if name not in HEARD}
    values = processor.load_medium(kind, source, given)
    if isinstance(values, dict):
        raise ConfigError("the sound of a video must be given as a medium of its own here")
    return values
