"""Defines BEATs, a transformer over 16x16 patches of a sound's filter bank (Chen et al., arXiv 2212.09058).

Shapes: B sounds, T filter bank frames, F mel bins, L tokens, D width, H heads, W width of a head. Tokens are ordered by
time, and by frequency within one time step. Weight names are those of Microsoft's ``.pt`` files.

Every layer normalises after adding the residual, which is scaled up beforehand ("deep norm"). Attention adds a bias
that depends on the distance between two tokens in that order. All layers share one table of biases; each query scales
its biases by a gate.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from videollama2.audio_config import AudioConfig
from videollama2.errors import ConfigError, MediaError
from videollama2.model.encoders.gradients import ScaleGradient, is_sliced, zero_of

FBANK_MEAN = 15.41663
FBANK_STD = 6.55582
"""Mean and standard deviation of the filter banks on which BEATs was pretrained."""

_BIAS_TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


class BeatsModel(PreTrainedModel):
    """The encoder. Its layers share one table of position biases, declared as tied weights."""

    config: AudioConfig
    config_class = AudioConfig
    main_input_name = "fbank"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["BeatsLayer"]
    _tied_weights_keys = {
        r"encoder\.layers\.(?!0\.)\d+\.self_attn\.relative_attention_bias\.weight": _BIAS_TABLE.format(0),
    }

    def __init__(self, config: AudioConfig) -> None:
        # The gated biases differ per query. Only sdpa accepts them, so it is used whatever the rest of the model uses.
        config._attn_implementation = "sdpa"
        super().__init__(config)
        size, width = config.input_patch_size, config.encoder_embed_dim
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, size, stride=size, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, width) if config.embed_dim != width else None
        self.encoder = BeatsEncoder(config)
        self.predictor = nn.Linear(width, config.predictor_class) if config.finetuned_model else None
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Map the shared table's name in every layer to that in the first; it is tied whatever the config says."""
        return {_BIAS_TABLE.format(i): _BIAS_TABLE.format(0) for i in range(1, self.config.encoder_layers)}

    def forward(self, fbank: torch.Tensor, padding_mask: torch.Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """Encode sounds.

        Args:
            fbank: ``fbank_BTF``, log filter banks, not normalised; any floating type, cast to the encoder's.
            padding_mask: ``mask_BT`` or ``mask_BTF``, True for padding. A token is ignored if all of its frames are
                padding. Published models pass no mask, so they hear padding as silence.

        Returns:
            ``last_hidden_state``: ``features_BLD`` with ``config.tokens_of(T)`` tokens.

        Raises:
            MediaError: there are fewer frames than one patch needs, or the number of mel bins is wrong.
        """
        hidden_BLD = self.embed_patches(fbank)
        is_padding_BL = None if padding_mask is None else token_mask(padding_mask, hidden_BLD.shape[1])
        hidden_BLD = self.layer_norm(hidden_BLD)
        if self.post_extract_proj is not None:
            hidden_BLD = self.post_extract_proj(hidden_BLD)
        hidden_BLD = F.dropout(hidden_BLD, self.config.dropout_input, self.training)
        features_BLD = self.encoder(hidden_BLD, is_padding_BL)
        if self.training and self.predictor is not None and self.predictor.weight.requires_grad:
            # Distributed training waits for the gradient of every weight that learns, also of the unused head.
            features_BLD = features_BLD + self.predictor(features_BLD[:, 0]).sum() * 0.0
        return BaseModelOutput(last_hidden_state=features_BLD)

    def scale_gradients(self, factor: float) -> None:
        """Set the factor by which the gradient shrinks in each layer (``layer_wise_gradient_decay_ratio``)."""
        self.config.layer_wise_gradient_decay_ratio = factor
        for layer in self.encoder.own_layers():
            layer.gradient_scale = factor

    def embed_patches(self, fbank_BTF: torch.Tensor) -> torch.Tensor:
        """Return normalised patches, ``hidden_BLD`` of width ``embed_dim``; frames after the last patch are cut."""
        size, bins = self.config.input_patch_size, self.config.num_mel_bins
        if fbank_BTF.dim() != 3 or fbank_BTF.shape[1] < size or fbank_BTF.shape[2] != bins:
            raise MediaError(
                f"a filter bank of shape {tuple(fbank_BTF.shape)} was given; (sounds, frames, {bins}) with at least "
                f"{size} frames is needed"
            )
        fbank_BTF = (fbank_BTF.to(self.patch_embedding.weight.dtype) - FBANK_MEAN) / (2 * FBANK_STD)
        return rearrange(self.patch_embedding(fbank_BTF.unsqueeze(1)), "b d t f -> b (t f) d")

    def class_probabilities(
        self, features_BLD: torch.Tensor, is_padding_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the probability of each sound class of the fine-tuned encoder, from the mean of the tokens' logits.

        Args:
            features_BLD: output of :meth:`forward`.
            is_padding_BL: tokens to leave out, see :func:`token_mask`.
        """
        if self.predictor is None:
            raise ConfigError("this encoder was not fine-tuned: it has no classes (audio_config.finetuned_model)")
        logits_BLK = self.predictor(features_BLD)
        if is_padding_BL is None:
            return logits_BLK.mean(1).sigmoid()
        kept_BL = ~is_padding_BL
        mean_BK = (logits_BLK * kept_BL.unsqueeze(-1)).sum(1) / kept_BL.sum(1, keepdim=True)
        return mean_BK.sigmoid()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise weights as BEATs does: Xavier, scaled down with depth on the residual branches (deep norm)."""
        if isinstance(module, nn.Linear) and isinstance(gain := getattr(module, "xavier_gain", None), float):
            init.xavier_normal_(module.weight, gain=gain)
            init.zeros_(module.bias)
        elif isinstance(module, BeatsAttention):
            init.ones_(module.grep_a)
        elif isinstance(module, PositionConv):
            std = math.sqrt(4 / (module.weight_v.shape[2] * module.bias.shape[0]))
            init.normal_(module.weight_v, std=std)
            init.copy_(module.weight_g, module.weight_v.float().pow(2).sum((0, 1), keepdim=True).sqrt())
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class BeatsEncoder(nn.Module):
    """The position convolution and the layers.

    Attributes:
        drop_seed: seed of the choice of layers that are skipped in training, so that several processes and all
            micro-batches of a step can skip the same ones; None draws from torch's global generator.
    """

    drop_seed: int | None = None

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.pos_conv = nn.ModuleList([PositionConv(config)])  # a list, for the sake of the published name
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim)
        self.layers = nn.ModuleList([BeatsLayer(config) for _ in range(config.encoder_layers)])
        for layer in self.own_layers()[1:]:
            layer.self_attn.relative_attention_bias = self.own_layers()[0].self_attn.relative_attention_bias
        self.dropout, self.layer_drop = config.dropout, config.encoder_layerdrop
        self.num_buckets, self.max_distance = config.num_buckets, config.max_distance

    def forward(self, hidden_BLD: torch.Tensor, is_padding_BL: torch.Tensor | None = None) -> torch.Tensor:
        if is_padding_BL is not None:
            hidden_BLD = hidden_BLD.masked_fill(is_padding_BL.unsqueeze(-1), 0)
        hidden_BLD = hidden_BLD + self.pos_conv[0](hidden_BLD)
        hidden_BLD = F.dropout(self.layer_norm(hidden_BLD), self.dropout, self.training)
        bias_HLL = self.position_bias(hidden_BLD.shape[1])
        for layer, is_dropped in zip(self.layers, self.dropped(), strict=True):
            if not is_dropped:
                hidden_BLD = layer(hidden_BLD, bias_HLL, is_padding_BL)
            elif is_sliced(layer):
                # ZeRO-3 gathers the weights of a layer only while it runs.
                hidden_BLD = hidden_BLD + layer(hidden_BLD, bias_HLL, is_padding_BL).sum() * 0.0
            else:
                hidden_BLD = hidden_BLD + zero_of([layer], hidden_BLD)
        return hidden_BLD

    def dropped(self) -> list[bool]:
        """Return for each layer whether this pass skips it."""
        if not (self.training and self.layer_drop):
            return [False] * len(self.layers)
        generator = None if self.drop_seed is None else torch.Generator().manual_seed(self.drop_seed)
        return (torch.rand(len(self.layers), generator=generator) < self.layer_drop).tolist()

    def own_layers(self) -> list[BeatsLayer]:
        """Return ``layers`` with their type, which a ModuleList does not tell."""
        return cast("list[BeatsLayer]", list(self.layers))

    def position_bias(self, length: int) -> torch.Tensor:
        """Return ``bias_HLL``, indexed by query and key: one value per head and distance, constant on each diagonal."""
        table = self.own_layers()[0].self_attn.relative_attention_bias
        distances = torch.arange(1 - length, length, device=table.weight.device)
        values_HD = table(distance_buckets(distances, self.num_buckets, self.max_distance)).T
        # Row i starts at distance -i, so the windows come in reverse.
        return values_HD.unfold(1, length, 1).flip(1)


class BeatsLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each followed by a residual sum and a norm."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = _xavier_linear(width, config.encoder_ffn_embed_dim, deep_norm_gain(config))
        self.fc2 = _xavier_linear(config.encoder_ffn_embed_dim, width, deep_norm_gain(config))
        self.final_layer_norm = nn.LayerNorm(width)
        self.residual_scale = (2 * config.encoder_layers) ** 0.25
        self.gradient_scale = config.layer_wise_gradient_decay_ratio
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout

    def forward(
        self, hidden_BLD: torch.Tensor, bias_HLL: torch.Tensor, is_padding_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.gradient_scale != 1 and hidden_BLD.requires_grad:
            hidden_BLD = ScaleGradient.apply(hidden_BLD, self.gradient_scale)
        branch_BLD = self._drop(self.self_attn(hidden_BLD, bias_HLL, is_padding_BL))
        hidden_BLD = self.self_attn_layer_norm(hidden_BLD * self.residual_scale + branch_BLD)
        branch_BLD = F.dropout(F.gelu(self.fc1(hidden_BLD)), self.activation_dropout, self.training)
        branch_BLD = self._drop(self.fc2(branch_BLD))
        return self.final_layer_norm(hidden_BLD * self.residual_scale + branch_BLD)

    def _drop(self, branch_BLD: torch.Tensor) -> torch.Tensor:
        return F.dropout(branch_BLD, self.dropout, self.training)


class BeatsAttention(nn.Module):
    """Self-attention with a relative position bias that each query scales for itself."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        gain = deep_norm_gain(config)
        self.q_proj, self.k_proj = _xavier_linear(width, width), _xavier_linear(width, width)
        self.v_proj, self.out_proj = _xavier_linear(width, width, gain), _xavier_linear(width, width, gain)
        self.relative_attention_bias = nn.Embedding(config.num_buckets, self.heads)
        self.grep_linear = nn.Linear(width // self.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))
        self.dropout = config.attention_dropout

    def forward(
        self, hidden_BLD: torch.Tensor, bias_HLL: torch.Tensor, is_padding_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        query_BHLW, key_BHLW, value_BHLW = (
            rearrange(proj(hidden_BLD), "b l (h w) -> b h l w", h=self.heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask_BHLL = self.gate(query_BHLW) * bias_HLL
        if is_padding_BL is not None:
            mask_BHLL = mask_BHLL.masked_fill(is_padding_BL[:, None, None], torch.finfo(mask_BHLL.dtype).min)
        attended_BHLW = F.scaled_dot_product_attention(
            query_BHLW, key_BHLW, value_BHLW, mask_BHLL, self.dropout if self.training else 0.0
        )
        return self.out_proj(rearrange(attended_BHLW, "b h l w -> b l (h w)"))

    def gate(self, query_BHLW: torch.Tensor) -> torch.Tensor:
        """Return ``gate_BHL1``, the factor of each query's biases (WavLM, arXiv 2110.13900, section 3.1)."""
        sums_BHL2 = self.grep_linear(query_BHLW).unflatten(-1, (2, 4)).sum(-1)
        update, reset = sums_BHL2.sigmoid().chunk(2, dim=-1)
        return update * (reset * self.grep_a - 1) + 2


def deep_norm_gain(config: AudioConfig) -> float:
    """Return the scale of initial weights on the residual branches (DeepNet, arXiv 2203.00555, table 1)."""
    return (8 * config.encoder_layers) ** -0.25


def _xavier_linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    # Read by _init_weights, which is called for each module separately.
    linear.xavier_gain = gain  # pyright: ignore[reportArgumentType] - modules may have attributes of any type
    return linear


class PositionConv(nn.Module):
    """A convolution along the tokens, with its weight normalised per kernel position, followed by GELU.

    (``torch.nn.utils.weight_norm`` has no epsilon, and quantisation does not support it.)
    """

    epsilon = 1e-6

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        width, self.groups = config.encoder_embed_dim, config.conv_pos_groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, config.conv_pos))
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, config.conv_pos))
        self.bias = nn.Parameter(torch.zeros(width))

    @property
    def weight(self) -> torch.Tensor:
        """The normalised ``weight_OIK``: output channels, input channels of a group, kernel."""
        norm_11K = torch.rsqrt(self.weight_v.pow(2).sum((0, 1), keepdim=True) + self.epsilon)
        return self.weight_g * self.weight_v * norm_11K

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        length, kernel = hidden_BLD.shape[1], self.weight_v.shape[2]
        x_BDL = F.conv1d(hidden_BLD.transpose(1, 2), self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        # An even kernel padded on both sides yields one step too many.
        return F.gelu(x_BDL[..., :length].transpose(1, 2))


def distance_buckets(distances: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Return the bucket of each distance (key index minus query index), as in T5 (arXiv 1910.10683).

    One half of the buckets is for positive distances. In each half, small distances have a bucket of their own, larger
    ones share buckets of logarithmically growing width, and all from ``max_distance`` on share the last one.
    """
    half = num_buckets // 2
    exact = half // 2
    magnitude = distances.abs()
    ratio = torch.log(magnitude.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    wide = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return (distances > 0) * half + torch.where(magnitude < exact, magnitude, wide)


def token_mask(padding_mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return ``is_padding_BL``, True for tokens whose frames are all padding.

    Args:
        padding_mask: ``mask_BT`` or ``mask_BTF``, True for padding.
        tokens: number of tokens L. As in the published code, the frames are divided into L equal runs, so the mask
            follows the flat order of the tokens rather than their position in time.
    """
    mask_BT = padding_mask.all(-1) if padding_mask.dim() == 3 else padding_mask
    frames = mask_BT.shape[1] - mask_BT.shape[1] % tokens
    return mask_BT[:, :frames].unflatten(1, (tokens, -1)).all(-1)
