"""Generates with media: they are passed to the first step only, and repeated along with their sequence for beams."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache
from transformers.generation.candidate_generator import CandidateGenerator, PromptLookupCandidateGenerator
from transformers.generation.utils import GenerationMixin

from videollama2.media.kinds import KINDS
from videollama2.model.base import Media, MediaFeatures, VideoLlama2PreTrainedModel
from videollama2.model.connectors import tokens_of_clip
from videollama2.model.published_call import embed_published


class VideoLlama2GenerationModel(VideoLlama2PreTrainedModel, GenerationMixin):
    """The base class of the model with a head: ``generate`` for sequences with media."""

    # The calls of super() below are marked for the type checker, because transformers describes the models that can
    # generate by a protocol that its own classes do not fulfil.

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride] - transformers names its arguments one by one
        self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Generate tokens as transformers does, or as programs written for the published code expect it.

        Args:
            inputs, args, kwargs: as for transformers.
            images: given only by such programs, also as None: media with their kinds, ``[(pixels_TCHW, "video")]``, for
                ``inputs`` with sentinels, see :func:`~videollama2.model.published_call.embed_published`. As in the
                published code, the result then holds the new tokens without the prompt.

        Raises:
            PromptError: ``images`` do not fit the prompt.
        """
        if "images" in kwargs:
            ids_1L, media = kwargs.pop("input_ids", inputs), kwargs.pop("images") or ()
            embeds_1LD = embed_published(self.get_submodule("model"), ids_1L, media)
            mask_1L = torch.ones(embeds_1LD.shape[:2], dtype=torch.long, device=embeds_1LD.device)
            inputs, kwargs = None, {**kwargs, "inputs_embeds": embeds_1LD, "attention_mask": mask_1L}
        return super().generate(inputs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    # transformers passes all but the ids by name.
    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: Media | None = None,
        input_features: Media | None = None,
        mm_encoder_outputs: dict[str, MediaFeatures] | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Pass media to the first step only; later steps read them from the cache."""
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if past_key_values is None or _is_empty(past_key_values, may_wait=bool(is_first_iteration)):
            inputs.update(
                pixel_values=pixel_values,
                pixel_values_videos=pixel_values_videos,
                input_features=input_features,
                mm_encoder_outputs=mm_encoder_outputs,
            )
        return inputs

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Return the processors of transformers; those that look up scores of earlier tokens see no placeholders."""
        processors = super()._get_logits_processor(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return LogitsProcessorList([_OnText(self, processors)]) if processors else processors

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> CandidateGenerator:
        """Return transformers' generator, whose candidates of prompt lookup end before a medium."""
        candidates = super()._get_candidate_generator(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return _LookedUpText(self, candidates) if isinstance(candidates, PromptLookupCandidateGenerator) else candidates

    def without_placeholders(self, input_ids: torch.Tensor, text_id: torch.Tensor | int) -> torch.LongTensor:
        """Replace placeholders in ``input_ids`` (B, L), which may lie outside the vocabulary, by ``text_id``."""
        placeholders = torch.tensor(self.config.placeholder_ids, device=input_ids.device)
        text_ids = torch.where(torch.isin(input_ids, placeholders), text_id, input_ids)
        return cast("torch.LongTensor", text_ids)  # torch's functions are annotated with Tensor, whatever the dtype

    # Ids are None where embeddings are given; transformers' own method then returns None as well.
    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.LongTensor | None, dict[str, Any]]:
        """Repeat media along with the sequences that beam search repeats.

        A sequence may hold any number of media, so they are repeated in blocks, one block per sequence: repeating each
        medium individually, as transformers up to 5.20 does, would assign them to the wrong sequences.
        """
        token_ids = {kind.batch_key: getattr(self.config, kind.token_id_field) for kind in KINDS.values()}
        media = {name: kwargs.pop(name) for name in token_ids if name in kwargs}
        blocks = {name: self._media_per_row(input_ids, token_ids[name], name, media[name]) for name in media}
        input_ids, kwargs = super()._expand_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        for name, value in media.items():
            rows = blocks[name]
            if expand_size > 1 and rows is not None:
                repeated = [item for row in rows for _ in range(expand_size) for item in row]
                value = torch.stack(repeated) if torch.is_tensor(value) else repeated
            kwargs[name] = value
        return input_ids, kwargs

    def _media_per_row(
        self, input_ids: torch.Tensor | None, token_id: int, name: str, media: Media | None
    ) -> list[list[torch.Tensor]] | None:
        """Split media, in reading order, by the sequence whose placeholders they fill."""
        if media is None or input_ids is None:
            return None
        remaining = list(media)
        rows = []
        for count in (input_ids == token_id).sum(1).tolist():
            row: list[torch.Tensor] = []
            while count > 0 and remaining:
                medium = remaining.pop(0)
                count -= self._tokens_of(name, medium)
                row.append(medium)
            rows.append(row)
        return rows

    def _tokens_of(self, name: str, medium: torch.Tensor) -> int:
        config = self.config
        if name == "input_features":
            return config.hearing.tokens_of(medium.shape[0])
        return tokens_of_clip(config, config.still_frames if name == "pixel_values" else medium.shape[0])


class _OnText(LogitsProcessor):
    """Logits processors for which each placeholder is replaced by the row's last token, which they see in any case."""

    def __init__(self, model: VideoLlama2GenerationModel, processors: LogitsProcessorList) -> None:
        self.model, self.processors = model, processors

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        return self.processors(self.model.without_placeholders(input_ids, input_ids[:, -1:]), scores)


class _LookedUpText(CandidateGenerator):
    """Continuations found in the prompt, cut before the first medium, since the model never generates placeholders."""

    def __init__(self, model: VideoLlama2GenerationModel, inner: PromptLookupCandidateGenerator) -> None:
        self.model, self.inner = model, inner

    def get_candidates(self, input_ids: torch.LongTensor, **kwargs: Any) -> tuple[torch.LongTensor, torch.Tensor]:
        # The search ends a continuation at the end token; without one it may propose the last token again.
        ends = self.inner.eos_token_id
        stop = input_ids[:, -1:] if ends is None else ends.reshape(-1)[0]
        found, logits = self.inner.get_candidates(self.model.without_placeholders(input_ids, stop), **kwargs)
        candidates = torch.cat((input_ids, found[:, input_ids.shape[1] :]), dim=1)
        return cast("torch.LongTensor", candidates), logits

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.Tensor, num_matches: int) -> None:
        self.inner.update_candidate_strategy(input_ids, scores, num_matches)


def _is_empty(cache: Cache, may_wait: bool) -> bool:
    """Return whether nothing is cached yet.

    A static cache that is in use keeps its length in a tensor; reading it would make every step wait for the GPU.
    """
    length = cache.get_seq_length()
    return (may_wait or isinstance(length, int)) and bool(length == 0)
