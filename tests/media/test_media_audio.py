"""Sound files and the sound of videos against the published preprocessing, and the choices beside it."""

import io
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import golden_audio_dir
from tests.media.helpers import write_wav
from videollama2.audio_config import AudioConfig
from videollama2.errors import MediaError, MediaNotFoundError
from videollama2.media import audio
from videollama2.media.audio import (
    NO_TRACK,
    ClipRules,
    SoundSampling,
    read_sound,
    read_video_sound,
    sound_features,
    window_spans,
)
from videollama2.media.filter_bank import log_filter_bank

GOLDEN = golden_audio_dir()
MEDIA = GOLDEN / "media"
ROWS = [row for row in json.loads((GOLDEN / "preprocess.json").read_text()) if (MEDIA / row["file"]).is_file()]
READ = {"process_audio_file": read_sound, "process_audio_from_video": read_video_sound}
# The published reader pads an empty track or a file it cannot read with silence. Here they are errors.
REFUSED = {"empty_16k.wav": "sound track is empty", "not_audio.wav": "in a format that can be read"}
SIXTEEN_WINDOWS_START = 16044  # where torch's generator, seeded with 0, began the 30 s of 16 windows of 2 s
COMPRESSED = (".mp3", ".ogg")


@pytest.fixture(scope="module")
def reference():
    return load_file(GOLDEN / "preprocess.safetensors")


def read(row, **options):
    rules = ClipRules(num_windows=row.get("clips_per_video", 8))
    crop = row["crop"]["start_in_source_samples"] if row.get("crop") else None
    if rules.num_windows == 16:
        crop = SIXTEEN_WINDOWS_START
    return READ[row["function"]](MEDIA / row["file"], rules, SoundSampling(crop_start=crop, **options))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["key"])
def test_preprocessing(row, reference):
    if row["file"] in REFUSED:
        with pytest.raises(MediaError, match=REFUSED[row["file"]]):
            read(row)
        return
    sound = read(row)
    if row["published_error"]:  # a container that libsndfile does not read
        assert np.abs(sound.wave_S).sum() > 1000
        return
    assert sound.wave_S.dtype == row["wave_dtype"]
    fbank_1TF = sound_features(sound, AudioConfig())
    assert list(fbank_1TF.shape) == row["shape"] and fbank_1TF.dtype == torch.bfloat16
    if row["wave_abs_sum"] == 0:
        assert not sound.wave_S.any()
        assert (sound.note == NO_TRACK) == ("does not contain any stream" in (row["printed"] or ""))
        return
    assert sound.note is None
    compare(row, sound, reference)


def compare(row, sound, reference):
    key = row["key"]
    is_file = row["function"] == "process_audio_file"
    lossy = row["file"].endswith(COMPRESSED)
    wave_atol = (2e-6 if lossy else 5e-8) if is_file else 4.1 / 2**15
    wave_S = sound.wave_S[reference["wave_index"].long()]
    np.testing.assert_allclose(wave_S, reference[f"{key}.wave_at"].numpy(), rtol=0, atol=wave_atol)
    fbank_TF = log_filter_bank(torch.from_numpy(sound.wave_S))[reference["frame_index"].long()]
    expected_TF = reference[f"{key}.fbank_rows"].to(fbank_TF.dtype)
    loud = expected_TF > 12
    if is_file and not lossy:
        torch.testing.assert_close(fbank_TF, expected_TF, rtol=0, atol=1e-4)
    elif loud.any():
        loud_atol = 0.006 if is_file else 0.11 if row["file"].endswith((".wav", ".flac")) else 0.02
        torch.testing.assert_close(fbank_TF[loud], expected_TF[loud], rtol=0, atol=loud_atol)
    if (head := reference.get(f"{key}.tensor_head")) is not None:
        ours = sound_features(sound, AudioConfig())[0, : head.shape[-2]]
        assert (ours != head.view_as(ours)).float().mean() < 1e-3
        torch.testing.assert_close(ours, head.view_as(ours), rtol=2**-7, atol=0)
    if row.get("clips_samples"):
        assert round(sound.seconds * 16000) == row["loaded_samples"]
        last = row["loaded_samples"]
        assert sound.spans == [(start, min(end, last)) for start, end in row["clips_samples"]]


def test_every_kind_of_row_is_here():
    assert len(ROWS) >= 30
    assert {row["function"] for row in ROWS} == set(READ)
    assert any(row.get("crop") for row in ROWS)


def test_windows():
    rows = json.loads((GOLDEN / "clip_times.json").read_text())
    assert len(rows) == 69
    for row in rows:
        spans = window_spans(row["samples"], 16000, row["clips_per_video"])
        assert [list(span) for span in spans] == row["clips_samples"]


def test_whole_windows_end_with_the_track():
    for samples in (352256, 40000):
        spans = window_spans(samples, 16000, whole=True)
        assert spans[0][0] == 0 and abs(spans[-1][1] - samples) <= 1
        assert window_spans(samples, 16000)[-1][1] < samples
    assert window_spans(8000, 16000, whole=True) == window_spans(8000, 16000)
    assert window_spans(64000, 16000, num_windows=1, whole=True) == [(0, 32000)]
    heard = read_video_sound(MEDIA / "duet_cut.mp4", sampling=SoundSampling(windows="whole"))
    assert heard.spans[-1][1] == round(heard.seconds * 16000)


def test_channels(tmp_path):
    waves_CS = np.stack([np.full(1600, 0.5), np.full(1600, -0.25), np.full(1600, 0.125)])
    path = write_wav(tmp_path / "three.wav", waves_CS)
    first, mixed = read_sound(path), read_sound(path, sampling=SoundSampling(channels="mix"))
    assert (first.wave_S[:1600] == 0.5).all() and not first.wave_S[1600:].any()
    assert (mixed.wave_S[:1600] == 0.125).all()


def test_bounds_cut_the_sound(tmp_path):
    ramp_S = np.arange(48000) / 2**16
    path = write_wav(tmp_path / "ramp.wav", [ramp_S])
    sound = read_sound(path, sampling=SoundSampling(start=1, end=2.5))
    assert sound.spans == [(16000, 40000)]
    np.testing.assert_allclose(sound.wave_S[:24000], ramp_S[16000:40000], atol=2**-15)
    assert not sound.wave_S[24000:].any() and len(sound.wave_S) == 480000
    heard = read_video_sound(path, sampling=SoundSampling(start=1))
    assert heard.spans == [(16000, 48000)] * 8
    np.testing.assert_allclose(heard.wave_S[:32000], ramp_S[16000:], atol=2**-15)
    with pytest.raises(MediaError, match=r"ramp\.wav: there is no sound between 5 s and its end; it is 3\.00 s long"):
        read_sound(path, sampling=SoundSampling(start=5))


def test_bounds_of_a_video_count_from_its_picture():
    late = MEDIA / "av_offset_0.7s.mp4"
    if not late.is_file():
        pytest.skip("the file is only in the whole reference set")
    whole, part = read_video_sound(late), read_video_sound(late, sampling=SoundSampling(start=1.0))
    assert whole.spans[0][0] == 0
    assert part.spans[0][0] == pytest.approx((1.0 - 0.7) * 16000, abs=0.05 * 16000)


def test_a_long_file_is_heard_in_its_middle_or_from_a_start(tmp_path):
    ramp_S = np.arange(40 * 8000) / (40 * 8000)
    path = write_wav(tmp_path / "long.wav", [ramp_S], 8000)
    assert read_sound(path).spans == [(40000, 280000)]
    assert read_sound(path, sampling=SoundSampling(crop_start=100)).spans == [(100, 240100)]
    assert read_sound(path, sampling=SoundSampling(start=2, crop_start=0)).spans == [(16000, 256000)]
    with pytest.raises(MediaError, match="cannot start at sample 80001 of 320000"):
        read_sound(path, sampling=SoundSampling(crop_start=80001))


@pytest.mark.parametrize("reader", [read_sound, read_video_sound])
def test_a_track_that_is_not_kept_in_memory_sounds_the_same(tmp_path, monkeypatch, reader):
    noise_S = np.random.default_rng(0).uniform(-0.5, 0.5, 45 * 11025)
    path = write_wav(tmp_path / "noise.wav", [noise_S], 11025)
    kept = reader(path)
    monkeypatch.setattr(audio, "_KEPT_SAMPLES", 11025)
    streamed = reader(path)
    assert streamed.spans == kept.spans and np.array_equal(streamed.wave_S, kept.wave_S)


def test_other_clip_rules():
    rules = ClipRules(sampling_rate=8000, clip_seconds=2.0, num_windows=2, window_seconds=0.5)
    config = AudioConfig(sampling_rate=8000, clip_seconds=2.0, num_windows=2, window_seconds=0.5)
    assert ClipRules.of(config) == rules
    for reader in (read_sound, read_video_sound):
        sound = reader(MEDIA / "demo1_cut.mp4", rules)
        assert len(sound.wave_S) == 16000
        assert sound_features(sound, config).shape == (1, config.clip_frames, 128)


def test_sources():
    path = MEDIA / "speech_mono_16k.wav"
    expected_S = read_sound(path).wave_S
    for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert np.array_equal(read_sound(source).wave_S, expected_S)


def test_videos_without_sound_are_silent_with_a_note(tmp_path):
    frames_THWC = np.zeros((4, 8, 8, 3), np.uint8)
    (tmp_path / "frames").mkdir()
    for source in (MEDIA / "video_no_audio.mp4", frames_THWC, [frames_THWC[0]], tmp_path / "frames"):
        sound = read_video_sound(source)
        assert sound.note == NO_TRACK and sound.seconds == 0 and not sound.wave_S.any()
    with pytest.raises(MediaError, match=r"video_no_audio\.mp4: has no sound track"):
        read_sound(MEDIA / "video_no_audio.mp4")
    with pytest.raises(MediaError, match="is a folder"):
        read_sound(tmp_path / "frames")


def test_missing_files():
    for reader in (read_sound, read_video_sound):
        with pytest.raises(MediaNotFoundError, match="missing.wav: no such file"):
            reader(MEDIA / "missing.wav")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start -1 of a sound"),
        ({"end": math.nan}, "end nan of a sound"),
        ({"start": 2, "end": 2}, "end 2 s of a sound is not after its start 2 s"),
        ({"channels": "left"}, "channels 'left'"),
        ({"windows": "all"}, "windows 'all'"),
        ({"crop_start": -1}, "crop_start -1"),
    ],
)
def test_sampling_rules(options, message):
    with pytest.raises(MediaError, match=message):
        SoundSampling(**options)
