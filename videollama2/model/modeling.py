"""Composes the model: a vision and an audio encoder, their connectors, and any transformers decoder.

Published weights keep their names on disk (:mod:`videollama2.model.weight_names` maps them). The input holds one
placeholder id per token of a medium (``config.image_token_id``, ``video_token_id``, ``audio_token_id``). The model
checks their number and writes the features to these positions; it never changes the length of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import AutoModel, PreTrainedModel
from transformers.cache_utils import Cache

from videollama2.config import VideoLlama2Config
from videollama2.constants import IGNORE_INDEX
from videollama2.errors import PromptError
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, VIDEO
from videollama2.model.base import (
    Media,
    MediaFeatures,
    VideoLlama2CausalLMOutput,
    VideoLlama2ModelOutput,
    VideoLlama2PreTrainedModel,
    check_loading,
)
from videollama2.model.features import MediaFeaturesMixin
from videollama2.model.generation import VideoLlama2GenerationModel
from videollama2.model.loss import linear_cross_entropy, token_cross_entropy

__all__ = ["VideoLlama2ForConditionalGeneration", "VideoLlama2Model", "VideoLlama2PreTrainedModel", "check_loading"]


class VideoLlama2Model(VideoLlama2PreTrainedModel, MediaFeaturesMixin):
    """Encoders, connectors and decoder without the language model head."""

    # Checkpoint files also hold the head.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: VideoLlama2Config) -> None:
        super().__init__(config)
        self._build_media_modules(config)
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return cast("nn.Embedding", self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def embed(
        self,
        input_ids: torch.Tensor,
        image_tokens: Sequence[torch.Tensor] = (),
        video_tokens: Sequence[torch.Tensor] = (),
        audio_tokens: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Embed ``input_ids`` (B, L), replacing placeholders by the tokens of media in order; returns ``embeds_BLD``.

        Raises:
            PromptError: the number of placeholders differs from the number of media tokens.
        """
        tokens = {IMAGE: image_tokens, VIDEO: video_tokens, AUDIO: audio_tokens}
        masks = [input_ids == placeholder for placeholder in self.config.placeholder_ids]
        # All counts are read at once, because reading from the GPU waits for it. No other place here does.
        counts = torch.stack([mask.sum() for mask in masks]).tolist()
        for count, (kind, given) in zip(counts, tokens.items(), strict=True):
            _check_count(count, given, kind)
        # Placeholder ids may lie outside the vocabulary. Any valid embedding will do, the features replace it below.
        text_ids = input_ids.masked_fill(masks[0] | masks[1] | masks[2], 0)
        embeds_BLD = self.get_input_embeddings()(text_ids)
        for mask, given in zip(masks, tokens.values(), strict=True):
            embeds_BLD = _scatter(embeds_BLD, mask, given)
        return embeds_BLD

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: Media | None = None,
        input_features: Media | None = None,
        mm_encoder_outputs: dict[str, MediaFeatures] | None = None,
        audio_index: Sequence[int] | None = None,
        visual_index: dict[str, Sequence[int]] | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> VideoLlama2ModelOutput | tuple:
        """Compute the hidden states of text with media.

        Args:
            input_ids: (B, L) with placeholders; give either this or ``inputs_embeds``.
            attention_mask: (B, L), 1 for tokens and 0 for padding.
            pixel_values, pixel_values_videos, input_features: all images, videos and sounds of the batch in reading
                order, see :meth:`get_image_features`, :meth:`get_video_features`, :meth:`get_audio_features`.
            mm_encoder_outputs: precomputed results of these methods, ``{"image": ..., "video": ..., "audio": ...}``,
                in place of media.
            audio_index: see :meth:`get_audio_features`.
            visual_index: for the kinds ``image`` and ``video``, the place of each medium of the rows among those given.
                It lets rows share a medium, which is then encoded once. By default, each medium given is used once.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if input_ids is not None:
            encoded = dict(mm_encoder_outputs or {})
            encoded |= self._encoded(pixel_values, pixel_values_videos, input_features, audio_index)
            tokens = used_tokens({kind: output.pooler_output for kind, output in encoded.items()}, visual_index)
            if tokens or past_key_values is None or input_ids.shape[1] > 1:
                embeds_BLD = self.embed(input_ids, *(tokens.get(kind, ()) for kind in KINDS))
            else:
                # A single generated token is never a placeholder; checking for one would wait for the GPU every step.
                embeds_BLD = self.get_input_embeddings()(input_ids)
            inputs_embeds = self.add_zero_of_unused(embeds_BLD, encoded.keys()) if self.training else embeds_BLD
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        result = VideoLlama2ModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
        return result.to_tuple() if return_dict is False else result

    def _encoded(
        self,
        images: torch.Tensor | None,
        videos: Media | None,
        sounds: Media | None,
        audio_index: Sequence[int] | None,
    ) -> dict[str, MediaFeatures]:
        """Encode the media that are given; see :meth:`forward`."""
        encoded = {}
        if images is not None:
            encoded[IMAGE] = self.get_image_features(images)
        if videos is not None and len(videos):
            encoded[VIDEO] = self.get_video_features(videos)
        if sounds is not None and len(sounds):
            encoded[AUDIO] = self.get_audio_features(sounds, audio_index=audio_index)
        return encoded


class ModelUnderHead(VideoLlama2Model):
    """The model inside :class:`VideoLlama2ForConditionalGeneration`.

    transformers looks up the mapping of weight names by class, also for models inside others. The head's mapping covers
    this one; the mapping of :class:`VideoLlama2Model` must apply only where that is the whole model.
    """


class VideoLlama2ForConditionalGeneration(VideoLlama2GenerationModel):
    """The full model with its language model head. Loading and saving use the published weight names."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    # Forward normalises the loss by num_items_in_batch; without this attribute the Trainer would scale it again.
    accepts_loss_kwargs = True

    def __init__(self, config: VideoLlama2Config) -> None:
        super().__init__(config)
        self.model = ModelUnderHead(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def get_decoder(self) -> PreTrainedModel:
        return cast("PreTrainedModel", self.model.language_model)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> MediaFeatures:
        """See :meth:`VideoLlama2Model.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_video_features(self, pixel_values_videos: Media, **kwargs: Any) -> MediaFeatures:
        """See :meth:`VideoLlama2Model.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def get_audio_features(self, input_features: Media, **kwargs: Any) -> MediaFeatures:
        """See :meth:`VideoLlama2Model.get_audio_features`."""
        return self.model.get_audio_features(input_features, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: Media | None = None,
        input_features: Media | None = None,
        mm_encoder_outputs: dict[str, MediaFeatures] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        token_losses: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> VideoLlama2CausalLMOutput | tuple:
        """Compute the logits and, if labels are given, the loss.

        In training with labels, and with ``token_losses``, logits are computed at labelled positions only and are not
        returned.

        Args:
            labels: (B, L), ``IGNORE_INDEX`` at positions without loss.
            logits_to_keep: number of last positions to compute, 0 for all; or an index tensor of positions.
            num_items_in_batch: number of labels in the whole optimiser step, by which the summed loss is divided;
                None for the mean over the labels given.
            token_losses: return the loss of each token (B, L - 1), with which token i + 1 is predicted from those
                before it, instead of a sum; 0 where there is no label.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            input_features=input_features,
            mm_encoder_outputs=mm_encoder_outputs,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_BLD = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            loss = self._loss(hidden_BLD, labels, num_items_in_batch, token_losses)
        if labels is None or not (self.training or token_losses):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_BLD[:, kept] if logits_to_keep is not None else hidden_BLD)
        result = VideoLlama2CausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result.to_tuple() if return_dict is False else result

    def _loss(
        self,
        hidden_BLD: torch.Tensor,
        labels_BL: torch.Tensor,
        num_items: int | torch.Tensor | None,
        of_tokens: bool = False,
    ) -> torch.Tensor:
        """Compute next-token cross entropy in float32, at labelled positions only."""
        targets_BL = labels_BL[:, 1:].to(hidden_BLD.device)
        labelled = targets_BL != IGNORE_INDEX
        hidden_ND, targets_N = hidden_BLD[:, :-1][labelled], targets_BL[labelled]
        if of_tokens:
            losses_N = token_cross_entropy(hidden_ND, self.lm_head, targets_N)
            return torch.zeros_like(targets_BL, dtype=losses_N.dtype).masked_scatter(labelled, losses_N)
        weight_VD = self.lm_head.weight
        if weight_VD.is_floating_point():
            total = linear_cross_entropy(hidden_ND, weight_VD, targets_N)
        else:  # quantised
            total = F.cross_entropy(self.lm_head(hidden_ND).float(), targets_N, reduction="sum")
        if num_items is None:
            # The loss of a batch without any label is zero instead of undefined.
            num_items = labelled.sum().clamp(min=1)
        elif not isinstance(num_items, int):
            num_items = num_items.to(total.device)
        return total / num_items


def used_tokens(
    tokens: dict[str, list[torch.Tensor]], index: dict[str, Sequence[int]] | None
) -> dict[str, list[torch.Tensor]]:
    """Return the tokens of each kind's media in the order of the rows, see ``visual_index`` of the model."""
    return {
        kind: [given[place] for place in (index or {}).get(kind, range(len(given)))] for kind, given in tokens.items()
    }


def _check_count(placeholders: int, tokens: Sequence[torch.Tensor], kind: str) -> None:
    features = sum(t.shape[0] for t in tokens)
    if placeholders != features:
        raise PromptError(
            f"the prompt has {placeholders} {kind} placeholder(s) but the {len(tokens)} {kind}(s) given make "
            f"{features} visual tokens; there must be one placeholder per visual token"
        )


def _scatter(embeds_BLD: torch.Tensor, mask_BL: torch.Tensor, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
    """Replace the masked positions by ``tokens``, in reading order."""
    if not tokens:
        return embeds_BLD
    features_ND = torch.cat(list(tokens)).to(embeds_BLD.device, embeds_BLD.dtype)
    return embeds_BLD.masked_scatter(mask_BL.unsqueeze(-1), features_ND)
