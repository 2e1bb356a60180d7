"""Sounds that a caller holds as samples, written as files that the readers of sound take."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

_FLOAT = 3  # the format code of IEEE floats in WAV files


def wav_bytes(samples_S: Sequence[float] | np.ndarray, rate: float) -> bytes:
    """Return samples of one channel as a WAV file of 32-bit floats, which holds them exactly.

    Args:
        rate: samples per second; rounded, as WAV files have whole rates.
    """
    content, rate = np.asarray(samples_S, "<f4").tobytes(), round(rate)
    form = struct.pack("<HHIIHH", _FLOAT, 1, rate, 4 * rate, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
