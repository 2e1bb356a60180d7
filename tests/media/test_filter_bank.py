"""Filter bank and Fourier resampling against torchaudio's and scipy's numbers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import golden_audio_dir
from videollama2.media.audio import resample
from videollama2.media.filter_bank import log_filter_bank, mel_triangles

# torch takes the logarithms of the mel scale from MKL, whose last digit differs between processors.
ATOL = {torch.float32: 1e-4, torch.float64: 5e-5}


@pytest.mark.parametrize(("dtype", "key"), [(torch.float32, "fbank32"), (torch.float64, "fbank64")])
def test_filter_bank(dtype, key):
    reference = load_file(golden_audio_dir() / "fbank.safetensors")
    waves = [name for name in reference if name.endswith(".wave")]
    assert waves
    for name in waves:
        expected_TF = reference[name.replace("wave", key)]
        ours_TF = log_filter_bank(reference[name].to(dtype))
        assert ours_TF.dtype == dtype
        torch.testing.assert_close(ours_TF, expected_TF, rtol=0, atol=ATOL[dtype])


def test_short_and_silent_waves():
    assert log_filter_bank(torch.zeros(399)).shape == (0, 128)
    silent_TF = log_filter_bank(torch.zeros(720, dtype=torch.float64))
    assert silent_TF.shape == (3, 128) and (silent_TF == silent_TF[0, 0]).all()
    assert silent_TF[0, 0].item() == pytest.approx(-15.942385152878742, abs=1e-12)


def test_a_tone_is_loudest_in_its_own_bin():
    for hertz in (200, 1000, 3000):
        wave_S = 0.1 * torch.sin(2 * torch.pi * hertz / 16000 * torch.arange(1600, dtype=torch.float64))
        loudest = log_filter_bank(wave_S)[3].argmax()
        peak_hertz = mel_triangles(128, 512, 16000)[loudest].argmax() * 16000 / 512
        assert abs(peak_hertz - hertz) <= 2 * 16000 / 512


def test_resampling():
    reference = load_file(golden_audio_dir() / "resample.safetensors")
    rates = [name for name in reference if name.endswith(".in")]
    assert len(rates) == 7
    for name in rates:
        expected_S = reference[name.replace("in", "out")].numpy()
        np.testing.assert_allclose(resample(reference[name].numpy(), len(expected_S)), expected_S, rtol=0, atol=1e-14)


def test_resampling_there_and_back_keeps_what_both_rates_hold():
    for before, after in ((300, 480), (480, 331), (331, 480)):
        phase_S = 2 * np.pi * np.arange(before) / before
        wave_S = np.cos(3 * phase_S) + np.sin(40 * phase_S)
        np.testing.assert_allclose(resample(resample(wave_S, after), before), wave_S, atol=1e-12)
    assert np.array_equal(resample(np.ones(7), 7), np.ones(7))
