"""Sounds that are damaged, odd or huge."""

import warnings

import av
import numpy as np
import pytest
from PIL import Image

from tests.conftest import golden_audio_dir
from tests.media.helpers import broken, tone, with_cover, write_wav
from videollama2.errors import MediaError, MediaLimitError
from videollama2.media.audio import read_sound, read_video_sound
from videollama2.media.limits import MediaLimits
from videollama2.media.pyav import sound as sound_module
from videollama2.media.readers import MediaWarning

MEDIA = golden_audio_dir() / "media"
BOTH = pytest.mark.parametrize("reader", [read_sound, read_video_sound])


@BOTH
def test_empty_files_and_text(tmp_path, reader):
    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    with pytest.raises(MediaError, match=r"a\.wav: the file is empty"):
        reader(path)
    path.write_text("this is no sound " * 100)
    with pytest.raises(MediaError, match=r"a\.wav: is not a video or a sound in a format that can be read"):
        reader(path)
    write_wav(path, [[]])
    with pytest.raises(MediaError, match=r"a\.wav: its sound track is empty \(0 s\)"):
        reader(path)


@BOTH
def test_ten_milliseconds(tmp_path, reader):
    sound = reader(write_wav(tmp_path / "a.wav", [tone(0.01, 16000)]))
    assert sound.wave_S[:160].any() and len(sound.wave_S) == 480000


@BOTH
def test_eight_channels(tmp_path, reader):
    path = write_wav(tmp_path / "a.wav", np.stack([tone(1, 16000) * (number + 1) / 8 for number in range(8)]))
    assert np.abs(reader(path).wave_S).max() > 0.02


@BOTH
def test_a_very_high_rate(tmp_path, reader):
    sound = reader(write_wav(tmp_path / "a.wav", [tone(2.5, 384000)], 384000))
    assert sound.seconds == pytest.approx(2.5, abs=1e-3)
    assert np.abs(np.fft.rfft(sound.wave_S[:16000])).argmax() == 440


@pytest.mark.slow
@BOTH
def test_an_hour(tmp_path, reader):
    rate = 800
    sound = reader(write_wav(tmp_path / "a.wav", [tone(3600, rate, 40.0)], rate))
    assert sound.seconds == pytest.approx(3600, abs=0.1) and sound.wave_S.any()


@BOTH
def test_longer_than_allowed(tmp_path, reader, monkeypatch):
    monkeypatch.setattr(sound_module, "MAX_SECONDS", 3600)
    with pytest.raises(MediaError, match="longer than 1 hours"):
        reader(write_wav(tmp_path / "a.wav", [tone(3700, 200, 20.0)], 200))


@BOTH
@pytest.mark.parametrize(
    ("limit", "rule"),
    [
        ({"max_streams": 1}, "has 2 streams, more than 1"),
        ({"max_sampling_rate": 44000}, "a sound of 44100 Hz has more than 44000 Hz"),
        ({"max_channels": 1}, "a sound of 2 channels has more than 1"),
        ({"max_seconds": 1.0}, "the sound is 3 s long; at most 1 s are accepted"),
    ],
)
def test_more_than_allowed(reader, limit, rule):
    with pytest.raises(MediaLimitError) as caught:
        reader(MEDIA / "av_stereo_44k_3s.mp4", limits=MediaLimits(**limit))
    assert caught.value.rule == rule


@BOTH
def test_truncated_in_the_end_is_used_with_a_warning(tmp_path, reader):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mp3", rate=16000, layout="mono")
        samples = tone(4, 16000).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", MediaWarning)
        whole = reader(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(
        MediaWarning, match=r"a\.mp3: the file is damaged or truncated; the .* s of sound that can be read are used"
    ):
        part = reader(path)
    assert 0.3 * whole.seconds < part.seconds < 0.7 * whole.seconds


@BOTH
def test_broken_in_the_middle_is_an_error(tmp_path, reader):
    with pytest.raises(MediaError, match=r"demo1_cut\.mp4: 0\.\d\d s of its sound cannot be decoded; 2\.\d\d s can"):
        reader(broken("demo1_cut.mp4", tmp_path, 12000))


@BOTH
@pytest.mark.parametrize(("name", "damaged"), [("demo1_cut.mp4", 3000), ("speech_mono_44k.flac", 6000)])
def test_a_small_gap_is_a_warning(tmp_path, reader, name, damaged):
    with pytest.warns(MediaWarning, match=r"0\.\d\d s of sound are missing"):
        assert reader(broken(name, tmp_path, damaged)).wave_S.any()


@BOTH
def test_cover_art_is_no_obstacle(tmp_path, reader):
    assert np.abs(reader(with_cover(tmp_path)).wave_S).max() > 0.3


def test_a_still_image_has_no_sound(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(MediaError, match=r"a\.png: is a still image"):
        read_sound(path)
