"""Defines ``AudioConfig``: the shape of the BEATs encoder, and the rules for cutting a sound into clips.

It is stored as ``audio_config`` in ``config.json``. The published checkpoints do not store it; their values are the
defaults here. The field names of the encoder are those of Microsoft's ``.pt`` files.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from videollama2.errors import ConfigError

# The values of all published BEATs checkpoints. Other values describe encoders that are not implemented here.
_FIXED = {
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}
_POSITIVE = (
    "input_patch_size",
    "embed_dim",
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "conv_pos",
    "conv_pos_groups",
    "num_buckets",
    "max_distance",
    "sampling_rate",
    "num_mel_bins",
    "num_windows",
    "clip_seconds",
    "window_seconds",
    "frame_length_ms",
    "frame_shift_ms",
)
_SHARES = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "encoder_layerdrop")


class AudioConfig(PreTrainedConfig):
    """Configuration of :class:`videollama2.model.encoders.beats.BeatsModel` and of its input.

    Args:
        input_patch_size: side of the square patches of the filter bank, in frames and mel bins.
        embed_dim: width of the patch embedding, before the projection to ``encoder_embed_dim``.
        conv_bias: whether the patch embedding has a bias.
        encoder_layers, encoder_embed_dim, encoder_ffn_embed_dim, encoder_attention_heads: shape of the transformer.
        dropout, attention_dropout, activation_dropout, dropout_input: dropout probabilities in training.
        encoder_layerdrop: probability of skipping a layer in training.
        layer_wise_gradient_decay_ratio: factor applied to the gradient at the input of each layer.
        conv_pos, conv_pos_groups: kernel and groups of the position convolution.
        num_buckets, max_distance: buckets of the relative position bias, and the distance from which all share one.
        finetuned_model, predictor_class: whether there is a classification head, and its number of classes. The head
            is kept with the weights, but language models do not use it.
        sampling_rate: samples per second of the sound from which the filter bank is computed.
        clip_seconds: length in seconds to which every sound is cut or padded.
        num_windows, window_seconds: number and length of the windows that are cut out of the sound of a video.
        num_mel_bins, frame_length_ms, frame_shift_ms: parameters of the filter bank.

    Raises:
        ConfigError: a value is out of range, or describes an encoder that is not implemented.
    """

    model_type = "videollama2_audio"

    def __init__(
        self,
        input_patch_size: int = 16,
        embed_dim: int = 512,
        conv_bias: bool = False,
        encoder_layers: int = 12,
        encoder_embed_dim: int = 768,
        encoder_ffn_embed_dim: int = 3072,
        encoder_attention_heads: int = 12,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        dropout_input: float = 0.0,
        encoder_layerdrop: float = 0.05,
        layer_wise_gradient_decay_ratio: float = 0.6,
        conv_pos: int = 128,
        conv_pos_groups: int = 16,
        num_buckets: int = 320,
        max_distance: int = 800,
        finetuned_model: bool = True,
        predictor_class: int = 527,
        sampling_rate: int = 16000,
        clip_seconds: float = 30.0,
        num_windows: int = 8,
        window_seconds: float = 2.0,
        num_mel_bins: int = 128,
        frame_length_ms: float = 25.0,
        frame_shift_ms: float = 10.0,
        **kwargs: Any,
    ) -> None:
        _drop_published_fields(kwargs)
        self.input_patch_size, self.embed_dim, self.conv_bias = input_patch_size, embed_dim, conv_bias
        self.encoder_layers, self.encoder_embed_dim = encoder_layers, encoder_embed_dim
        self.encoder_ffn_embed_dim = encoder_ffn_embed_dim
        self.encoder_attention_heads = encoder_attention_heads
        self.dropout, self.attention_dropout, self.activation_dropout = dropout, attention_dropout, activation_dropout
        self.dropout_input, self.encoder_layerdrop = dropout_input, encoder_layerdrop
        self.layer_wise_gradient_decay_ratio = layer_wise_gradient_decay_ratio
        self.conv_pos, self.conv_pos_groups = conv_pos, conv_pos_groups
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.finetuned_model, self.predictor_class = finetuned_model, predictor_class
        self.sampling_rate, self.clip_seconds = sampling_rate, clip_seconds
        self.num_windows, self.window_seconds = num_windows, window_seconds
        self.num_mel_bins = num_mel_bins
        self.frame_length_ms, self.frame_shift_ms = frame_length_ms, frame_shift_ms
        super().__init__(**kwargs)
        self._check()

    @property
    def clip_samples(self) -> int:
        """Number of samples in a clip."""
        return round(self.clip_seconds * self.sampling_rate)

    @property
    def frame_samples(self) -> tuple[int, int]:
        """(Length, shift) in samples of a frame of the filter bank."""
        rate = self.sampling_rate * 0.001
        return int(rate * self.frame_length_ms), int(rate * self.frame_shift_ms)

    @property
    def clip_frames(self) -> int:
        """Number of filter bank frames in a clip; frames that would extend beyond its end are left out."""
        length, shift = self.frame_samples
        return max(0, 1 + (self.clip_samples - length) // shift)

    def tokens_of(self, frames: int) -> int:
        """Return the number of encoder outputs for so many frames: patches along time times patches along frequency."""
        return frames // self.input_patch_size * (self.num_mel_bins // self.input_patch_size)

    def _check(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigError(f"audio_config: {name} must be a positive number, got {value!r}")
        for name in _SHARES:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ConfigError(f"audio_config: {name} must be at least 0 and below 1, got {value!r}")
        if not 0 < self.layer_wise_gradient_decay_ratio <= 1:
            raise ConfigError(
                "audio_config: layer_wise_gradient_decay_ratio must be above 0 and at most 1, "
                f"got {self.layer_wise_gradient_decay_ratio!r}"
            )
        for name in ("encoder_attention_heads", "conv_pos_groups"):
            if self.encoder_embed_dim % getattr(self, name):
                raise ConfigError(
                    f"audio_config: encoder_embed_dim {self.encoder_embed_dim} must be a multiple of {name} "
                    f"{getattr(self, name)}"
                )
        if self.num_buckets % 4:
            raise ConfigError(f"audio_config: num_buckets must be a multiple of 4, got {self.num_buckets}")
        if self.max_distance <= self.num_buckets // 4:
            raise ConfigError(
                f"audio_config: max_distance {self.max_distance} must be above a quarter of num_buckets "
                f"({self.num_buckets})"
            )
        if self.clip_frames < self.input_patch_size or self.num_mel_bins < self.input_patch_size:
            raise ConfigError(
                f"audio_config: a clip of {self.clip_seconds} s has {self.clip_frames} frames of {self.num_mel_bins} "
                f"mel bins, less than one patch of {self.input_patch_size}x{self.input_patch_size}"
            )


def _drop_published_fields(fields: dict[str, Any]) -> None:
    """Take out the fields of published files that are not kept here.

    Raises:
        ConfigError: a value describes an encoder that is not implemented.
    """
    for name, only in _FIXED.items():
        if (given := fields.pop(name, only)) != only:
            raise ConfigError(f"audio_config: {name} must be {only!r}, got {given!r}")
    # The decoder's width (the model's hidden_size_a) and the dropout of an unused head have no effect.
    for name in ("hidden_size", "predictor_dropout"):
        fields.pop(name, None)
