"""Computes a sound's log filter bank, as Kaldi and torchaudio do. Shapes: T frames, S samples, F mel bins."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
LOG_FLOOR = torch.finfo(torch.float32).eps  # also in float64: published
INT16_SCALE = 2.0**15
"""Filter banks of speech tools are of samples in the range of 16-bit integers."""


def log_filter_bank(
    wave_S: torch.Tensor,
    sampling_rate: int = 16000,
    num_mel_bins: int = 128,
    frame_samples: tuple[int, int] = (400, 160),
) -> torch.Tensor:
    """Return ``fbank_TF`` of a sound, computed in the wave's own type.

    Per frame: mean removed, pre-emphasis, Povey window, power spectrum, triangles equally spaced in mel from 20 Hz to
    half the rate, logarithm. Source: ``torchaudio.compliance.kaldi.fbank`` without dither.

    Args:
        wave_S: samples between -1 and 1, float32 or float64. (Quiet sounds need float64: rounding noise of float32
            is louder than what resampling leaves in silence.)
        frame_samples: length and shift of a frame.

    Returns:
        (T, F); T is 0 where there are fewer samples than in a frame.
    """
    length, shift = frame_samples
    if wave_S.shape[0] < length:
        return wave_S.new_empty((0, num_mel_bins))
    frames_TS = (wave_S * INT16_SCALE).unfold(0, length, shift)
    frames_TS = frames_TS - frames_TS.mean(dim=1, keepdim=True)
    before_TS = F.pad(frames_TS.unsqueeze(0), (1, 0), mode="replicate").squeeze(0)[:, :-1]
    window_S = torch.hann_window(length, periodic=False, dtype=wave_S.dtype).pow(0.85)
    frames_TS = (frames_TS - PREEMPHASIS * before_TS) * window_S
    padded = 1 << (length - 1).bit_length()
    power_TK = torch.fft.rfft(F.pad(frames_TS, (0, padded - length))).abs().pow(2)
    triangles_FK = mel_triangles(num_mel_bins, padded, sampling_rate).to(wave_S.dtype)
    return torch.mm(power_TK, triangles_FK.T).clamp(min=LOG_FLOOR).log()


@lru_cache(maxsize=8)
def mel_triangles(num_mel_bins: int, fft_size: int, sampling_rate: int) -> torch.Tensor:
    """Return the weight of each frequency in each mel bin, (F, fft_size // 2 + 1); that of half the rate is 0."""
    lowest, highest = _mel(LOWEST_HZ), _mel(sampling_rate / 2)
    step = (highest - lowest) / (num_mel_bins + 1)
    bins_F1 = torch.arange(num_mel_bins).unsqueeze(1)
    left_F1, centre_F1, right_F1 = (lowest + (bins_F1 + i) * step for i in (0.0, 1.0, 2.0))
    hertz_K = sampling_rate / fft_size * torch.arange(fft_size // 2)
    # In float32 as published, but with a logarithm rounded alike on every processor; torch's is not.
    log_K = (1.0 + hertz_K / 700.0).double().log().float()
    mel_1K = (1127.0 * log_K).unsqueeze(0)
    rising_FK = (mel_1K - left_F1) / (centre_F1 - left_F1)
    falling_FK = (right_F1 - mel_1K) / (right_F1 - centre_F1)
    return F.pad(torch.minimum(rising_FK, falling_FK).clamp(min=0), (0, 1))


def _mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)
