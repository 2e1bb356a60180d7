"""Turns media into tokens of the decoder's width. A model may have a vision encoder, an audio encoder or both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from videollama2.config import VideoLlama2Config
from videollama2.errors import MediaError, PromptError
from videollama2.media.kinds import AUDIO, IMAGE, SEEN, VIDEO
from videollama2.model.base import Media, MediaFeatures
from videollama2.model.connectors import build_connector, check_class_token, tokens_of_clip
from videollama2.model.connectors.audio import build_audio_projector
from videollama2.model.connectors.base import Connector, Shown
from videollama2.model.encoders import encode_frames, vision_encoder
from videollama2.model.encoders.beats import BeatsModel
from videollama2.model.encoders.gradients import zero_of

_PATCHES_AT_ONCE = 1 << 10
"""A CPU encodes as many frames in one pass as have so many patches at least."""


class MediaFeaturesMixin:
    """The part of the model that turns media into tokens, a mixin for a module that has a ``config``.

    Attributes:
        vision_tower, mm_projector: vision encoder and connector; None if the model takes no images and videos.
        pixel_table: pixel value of each channel's 256 levels (3, 256), with which frames may be given as uint8.
        takes_features: media are given as features of the frozen encoders, which are not run: those of frames
            (patches, D) in place of pixels (C, H, W), those of sounds (N, D) in place of filter banks (T, F).
        audio_tower, mm_projector_a: audio encoder and projector; None if the model takes no sound.
    """

    config: VideoLlama2Config
    pixel_table: torch.Tensor | None = None
    takes_features: bool = False
    vision_tower: PreTrainedModel | None
    mm_projector: Connector | None
    audio_tower: BeatsModel | None
    mm_projector_a: nn.Module | None

    def _build_media_modules(self, config: VideoLlama2Config) -> None:
        self.vision_tower = self.mm_projector = self.audio_tower = self.mm_projector_a = None
        if config.vision_config is not None:
            check_class_token(config.mm_projector_type, config.keeps_class_token)
            self.vision_tower = vision_encoder(config.vision_config.model_type).build(config.vision_config)
            self.mm_projector = build_connector(config.mm_projector_type, config.mm_hidden_size, config.hidden_size)
        if config.audio_config is not None:
            self.audio_tower = BeatsModel(config.audio_config)
            self.mm_projector_a = build_audio_projector(
                config.mm_projector_a_type, config.mm_hidden_size_a, config.hidden_size
            )

    def encode_vision(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Encode frames into ``features_BND`` of the selected layer. A frozen encoder runs without autograd.

        Args:
            pixels_BCHW: normalised frames; or uint8 levels, which are looked up in ``pixel_table``. If the model
                ``takes_features``, these are ``features_BND``, which are returned.

        Raises:
            PromptError: this model has no vision encoder, or no table for levels.
        """
        tower, _ = self.eyes()
        pixels_BCHW = pixels_BCHW.to(self._vision_device())
        if self.takes_features:
            return pixels_BCHW
        with _graph_of(tower):
            parts = [self._encode_frames(tower, part) for part in pixels_BCHW.split(self._frames_at_once(pixels_BCHW))]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _encode_frames(self, tower: PreTrainedModel, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        if pixels_BCHW.dtype == torch.uint8:
            pixels_BCHW = self._pixels_of(pixels_BCHW)
        select = self.config.mm_vision_select_layer, self.config.mm_vision_select_feature
        return encode_frames(tower, pixels_BCHW, *select)

    def _frames_at_once(self, pixels_BCHW: torch.Tensor) -> int:
        """Return how many frames a pass of the encoder takes.

        A CPU is faster with few frames at once, whose activations stay in its caches: with two of CLIP ViT-L/14-336 in
        place of eight, it takes 0.6 of the time in 8 bits, 0.8 in bfloat16 and 1.0 in float32, for the same features.
        The activations of a pass are also the largest there are: 40 MB a frame in float32. Where gradients are
        computed, all activations are kept anyway, and ranks that share weights must run the encoder equally often.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if pixels_BCHW.device.type != "cpu" or torch.is_grad_enabled() or distributed:
            return max(1, len(pixels_BCHW))
        return -(-_PATCHES_AT_ONCE // self.config.patches_per_side**2)

    def _pixels_of(self, levels_BCHW: torch.Tensor) -> torch.Tensor:
        if self.pixel_table is None:
            raise PromptError("frames must be normalised pixels: this model has no table for uint8 levels")
        self.pixel_table = table_3V = self.pixel_table.to(levels_BCHW.device)
        pixels_BCHW = torch.empty(levels_BCHW.shape, dtype=table_3V.dtype, device=levels_BCHW.device)
        # One channel at a time, since indices take four bytes per level.
        for channel, values_V in enumerate(table_3V):
            indices = levels_BCHW[:, channel].int().flatten()
            pixels_BCHW[:, channel] = values_V.index_select(0, indices).view_as(levels_BCHW[:, channel])
        return pixels_BCHW

    def encode_audio(self, fbank_BTF: torch.Tensor) -> torch.Tensor:
        """Encode filter banks of equal length into ``features_BND``. A frozen encoder runs without autograd.

        If the model ``takes_features``, features are given, and returned.

        Raises:
            PromptError: this model has no audio encoder.
            MediaError: the filter banks do not have the shape that the encoder expects.
        """
        tower, _ = self.ears()
        if self.takes_features:
            return fbank_BTF.to(tower.device)
        with _graph_of(tower):
            return tower(fbank_BTF.to(tower.device)).last_hidden_state

    def get_image_features(
        self, pixel_values: torch.Tensor, num_frames: int | None = None, **kwargs: Any
    ) -> MediaFeatures:
        """Compute the visual tokens of still images.

        Args:
            pixel_values: (B, C, H, W). Each image is encoded once and treated as a clip of ``num_frames`` equal frames.
            num_frames: defaults to ``config.still_frames``.

        Returns:
            ``pooler_output``: list of B tensors (N, D); ``last_hidden_state``: encoder features (B, patches, D).
        """
        # The encoder sees the picture once, though the decoder gets the tokens of a clip: the connector repeats what is
        # equal.
        features_BND = self.encode_vision(pixel_values)
        _, connector = self.eyes()
        frames = self.config.still_frames if num_frames is None else num_frames
        tokens_BND = connector.forward_still(to_connector(features_BND, connector), frames)
        return MediaFeatures(last_hidden_state=features_BND, pooler_output=list(tokens_BND))

    def get_video_features(self, pixel_values_videos: Media, **kwargs: Any) -> MediaFeatures:
        """Compute the visual tokens of videos.

        Args:
            pixel_values_videos: (B, T, C, H, W), or a sequence of (T, C, H, W) whose frame counts may differ.

        Returns:
            ``pooler_output``: list of B tensors (N, D) in the order of the videos. Videos of one shape share one pass
            through encoder and connector.

        Raises:
            ConfigError: the frames do not have the size that the encoder expects.
        """

        def encode(videos_BTCHW: torch.Tensor) -> torch.Tensor:
            _, connector = self.eyes()
            features_BND = to_connector(self.encode_vision(videos_BTCHW.flatten(0, 1)), connector)
            return connector(features_BND.unflatten(0, videos_BTCHW.shape[:2]))

        return MediaFeatures(pooler_output=_by_shape(pixel_values_videos, encode))

    def get_visual_features(
        self, images_BCHW: torch.Tensor | None, videos: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Compute the visual tokens of all images and all videos of a batch; each returned tensor is (N, D).

        Encoder and every part of the connector run exactly once, whatever the batch holds: under DeepSpeed, all ranks
        must run the same modules equally often. For a batch without any medium they run on a black image, whose
        tokens are then the only ones returned.

        Args:
            videos: one tensor (T, C, H, W) per video; T may differ.
        """
        stills = 0 if images_BCHW is None else len(images_BCHW)
        frames = [*([] if images_BCHW is None else [images_BCHW]), *videos]
        if not stills and not videos:
            frames, stills = [self._black()], 1
        # Of a still, one frame is encoded and several are shown; of a video, all frames are both.
        shown = [Shown(1, self.config.still_frames)] * stills + [Shown(len(video), len(video)) for video in videos]
        features_FND = self.encode_vision(torch.cat([part.to(self._vision_device()) for part in frames]))
        # The tokens of all media come back one after the other. How many belong to each is known in advance.
        counts = [tokens_of_clip(self.config, total) for _, total in shown]
        _, connector = self.eyes()
        tokens = connector(to_connector(features_FND, connector), shown).split(counts)
        return list(tokens[:stills]), list(tokens[stills:])

    def get_audio_features(
        self, input_features: Media, audio_index: Sequence[int] | None = None, **kwargs: Any
    ) -> MediaFeatures:
        """Compute the tokens of sounds.

        Args:
            input_features: filter banks (B, T, F), or a sequence of (T, F) whose lengths may differ.
            audio_index: for each sound wanted, its place in ``input_features``. It lets a sound that occurs several
                times be encoded once. By default, each filter bank is one sound.

        Returns:
            ``pooler_output``: list of tensors (N, D) in the order of the sounds wanted. Sounds of one length share one
            pass through encoder and projector.

        Raises:
            PromptError, MediaError: see :meth:`encode_audio`.
        """

        def encode(fbank_BTF: torch.Tensor) -> torch.Tensor:
            _, connector = self.ears()
            return connector(to_connector(self.encode_audio(fbank_BTF), connector))

        # A sound that several samples share is encoded once; the index hands its tokens, and their gradients, to each.
        tokens = _by_shape(input_features, encode)
        wanted = tokens if audio_index is None else [tokens[place] for place in audio_index]
        return MediaFeatures(pooler_output=wanted)

    def get_sound_features(self, sounds: Media | None, audio_index: Sequence[int] | None = None) -> list[torch.Tensor]:
        """Compute the tokens of all sounds of a batch, one tensor (N, D) each, in exactly one pass of the encoder.

        Under DeepSpeed, all ranks must run the same modules equally often. For a batch without any sound, the encoder
        runs on one patch of zeros, whose tokens are then returned.

        Args:
            sounds, audio_index: filter banks (B, T, F) of equal length, see :meth:`get_audio_features`.

        Raises:
            MediaError: the lengths differ.
        """
        if sounds is None or not len(sounds):
            audio = self.ears()[0].config
            shape = (
                (1, audio.encoder_embed_dim) if self.takes_features else (audio.input_patch_size, audio.num_mel_bins)
            )
            sounds = torch.zeros(1, *shape)
        if not torch.is_tensor(sounds):
            raise MediaError("the sounds of a batch must have one length to be encoded together")
        return list(self.get_audio_features(sounds, audio_index).pooler_output)

    def check_senses(self, kinds: Collection[str]) -> None:
        """Raise PromptError if the model has no encoder for media of one of these kinds."""
        if AUDIO in kinds:
            self.ears()
        if set(SEEN) & set(kinds):
            self.eyes()

    def encode_media(self, kind: str, media: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the tokens (N, D) of media of one kind from a processor's tensors.

        Args:
            media: pixels (T, C, H, W) of images or videos, or filter banks (1, T, F).
        """
        if kind == IMAGE:
            return self.get_image_features(torch.cat(list(media))).pooler_output
        if kind == VIDEO:
            return self.get_video_features(media).pooler_output
        return self.get_audio_features([fbank_1TF[0] for fbank_1TF in media]).pooler_output

    def add_zero_of_unused(self, embeds_BLD: torch.Tensor, kinds: Collection[str]) -> torch.Tensor:
        """Add a zero that depends on all trainable weights of the encoders and connectors that ``kinds`` do not run.

        A micro-batch of text runs none of them, but DDP and ZeRO wait for a gradient of every trainable weight on every
        rank.
        """
        unused = [] if AUDIO in kinds else [self.audio_tower, self.mm_projector_a]
        if not set(SEEN) & set(kinds):
            unused += [self.vision_tower, self.mm_projector]
        modules = [module for module in unused if module is not None]
        return embeds_BLD + zero_of(modules, embeds_BLD) if modules else embeds_BLD

    def _black(self) -> torch.Tensor:
        """Return one frame without content, for a batch that has none."""
        if self.takes_features:
            return torch.zeros(1, self.config.features_per_frame, self.config.mm_hidden_size)
        side = self.eyes()[0].config.image_size
        return torch.zeros(1, 3, side, side)

    def _vision_device(self) -> torch.device:
        return next(self.eyes()[0].parameters()).device

    def eyes(self) -> tuple[PreTrainedModel, Connector]:
        """Return the vision encoder and its connector."""
        if self.vision_tower is None or self.mm_projector is None:
            raise PromptError("this model has no vision encoder: it takes neither images nor videos")
        return self.vision_tower, self.mm_projector

    def ears(self) -> tuple[BeatsModel, nn.Module]:
        """Return the audio encoder and its projector."""
        if self.audio_tower is None or self.mm_projector_a is None:
            raise PromptError("this model has no audio encoder: it takes no sound")
        return self.audio_tower, self.mm_projector_a


def _graph_of(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context that disables autograd if the module is frozen."""
    return nullcontext() if any(p.requires_grad for p in module.parameters()) else torch.no_grad()


def to_connector(features: torch.Tensor, connector: nn.Module) -> torch.Tensor:
    """Move the features to the connector's device and dtype."""
    weight = next(connector.parameters(), None)
    if weight is None or not weight.is_floating_point():
        return features
    return features.to(weight.device, weight.dtype)


def _by_shape(media: Media, encode: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """Encode media in one pass per shape; the results are in the order of the media."""
    media = list(media)
    results: dict[int, torch.Tensor] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, medium in enumerate(media):
        # Only media of one shape can be stacked. Most batches have one shape, and so take one pass.
        groups.setdefault(tuple(medium.shape), []).append(index)
    for indices in groups.values():
        results.update(zip(indices, encode(torch.stack([media[i] for i in indices])), strict=True))
    return [results[index] for index in range(len(media))]
