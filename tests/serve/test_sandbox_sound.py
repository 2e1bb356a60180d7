"""Sounds of clients: the same clips as at home, and bad files refused with a reason that a client may read."""

import asyncio
import io
import wave
from dataclasses import asdict

import numpy as np
import pytest

from tests.conftest import golden_audio_dir
from tests.media.helpers import broken, tone, with_cover
from tests.serve.helpers.media import film, picture, policy
from videollama2.media.audio import NO_TRACK, ClipRules, SoundSampling, read_sound, read_video_sound
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.replies import InvalidReplyError, sound_of
from videollama2.serve.untrusted_media.sandbox import Sandbox

MEDIA = golden_audio_dir() / "media"
RULES = ClipRules(clip_seconds=2.0, num_windows=4, window_seconds=0.25)
SOUNDS = (
    "speech_mono_22k.wav",
    "speech_stereo_44k.mp3",
    "speech_mono_32k.ogg",
    "speech_mono_44k.flac",
    "u8_mono_8k.wav",
)
VIDEOS = ("av_stereo_44k_3s.mp4", "av_opus_48k.webm", "av_two_tracks.mp4", "av_5.1_48k.mp4")


@pytest.fixture(scope="module")
def box():
    """One sandbox for all: nothing that the tests send may break its process."""
    found = Sandbox(policy(max_duration_s=3600.0), rules=RULES)
    yield found
    found.close()
    assert found.started == 1, "a process was lost on the way"


def hear(box, content, **options):
    return asyncio.run(box.hear(content, options))


def refusal(box, content, **options):
    with pytest.raises(RefusedMediaError) as caught:
        hear(box, content, **options)
    return caught.value


def wav(wave_S, rate=16000, channels=1):
    """A file of 16 bits that has the same sound in all channels."""
    samples_SC = np.repeat(wave_S[:, None], channels, axis=1)
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(samples_SC.shape[1])
        output.setsampwidth(2)
        output.setframerate(rate)
        output.writeframes((samples_SC * 32767).astype("<i2").tobytes())
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUNDS)
def test_sound_files(box, name):
    expected = read_sound(MEDIA / name, RULES)
    sound = hear(box, (MEDIA / name).read_bytes())
    assert sound.wave_S.dtype == expected.wave_S.dtype == np.float64 and np.array_equal(sound.wave_S, expected.wave_S)
    assert (sound.spans, sound.seconds, sound.note) == (expected.spans, expected.seconds, None)
    assert not sound.wave_S.flags.writeable, "it is shared by all questions about it"


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEOS)
def test_the_sound_of_videos(box, name):
    expected = read_video_sound(MEDIA / name, RULES)
    sound = hear(box, MEDIA / name, of_video=True)
    assert sound.wave_S.dtype == np.float32 and np.array_equal(sound.wave_S, expected.wave_S)
    assert (sound.spans, sound.note) == (expected.spans, None)


def test_options(box):
    path = MEDIA / "av_stereo_44k_3s.mp4"
    options = {"start": 0.5, "end": 2.25, "windows": "whole"}
    expected = read_video_sound(path, RULES, SoundSampling(**options))
    assert np.array_equal(hear(box, path, of_video=True, **options).wave_S, expected.wave_S)
    mixed = read_sound(path, RULES, SoundSampling(channels="mix"))
    assert np.array_equal(hear(box, path, channels="mix").wave_S, mixed.wave_S)
    assert str(refusal(box, path, start=3, end=2)) == "end 2 s of a sound is not after its start 3 s"
    assert "there is no sound between 9 s and its end; it is 3.0" in str(refusal(box, path, start=9))


def test_a_video_without_a_track_is_silent_and_says_so(box):
    for content in (MEDIA / "video_no_audio.mp4", film(), [picture(form="JPEG")] * 3):
        sound = hear(box, content, of_video=True)
        assert sound.note == NO_TRACK and not sound.wave_S.any() and sound.seconds == 0
    assert str(refusal(box, film())) == "has no sound track", "who sends a sound wants it heard"


@pytest.mark.slow
def test_odd_sounds_are_heard(box):
    for seconds, rate, channels in ((0.01, 16000, 1), (1, 16000, 8), (1, 384_000, 1)):
        content = wav(tone(seconds, rate), rate, channels)
        sound = hear(box, content)
        assert np.array_equal(sound.wave_S, read_sound(content, RULES).wave_S) and sound.wave_S.any()


@pytest.mark.slow
def test_an_hour(box):
    content = wav(tone(3600, 200, 20.0), 200)
    sound = hear(box, content)
    assert sound.seconds == 3600 and sound.spans == [(359_800, 360_200)], "the middle"
    assert str(refusal(box, wav(tone(3605, 200), 200))) == "the sound is 3605 s long; at most 3600 s are accepted"


def test_bad_sounds(box):
    bad = "the audio cannot be heard: it is damaged, or not of an accepted format"
    assert str(refusal(box, b"")) == "the audio is empty"
    assert str(refusal(box, b"This is no sound but a text. " * 99)) == bad
    assert str(refusal(box, picture())) in (bad, "has no sound track")
    assert str(refusal(box, (MEDIA / "empty_16k.wav").read_bytes())) == "its sound track is empty (0 s)"
    assert str(refusal(box, (MEDIA / "not_audio.wav").read_bytes())) == bad
    infinite = wav(tone(1, 16000)).replace(b"\x01\x00\x01\x00\x80\x3e\x00\x00", b"\x01\x00\x01\x00\xff\xff\xff\x7f")
    assert str(refusal(box, infinite)) in (bad, "a sound of 2147483647 Hz has more than 768000 Hz")


def test_broken_in_the_middle(box, tmp_path):
    assert (
        str(refusal(box, broken("demo1_cut.mp4", tmp_path, 12000)))
        == "the audio cannot be heard: it is damaged, or not of an accepted format"
    )
    cut = (MEDIA / "truncated_22k.wav").read_bytes()
    assert np.array_equal(hear(box, cut).wave_S, read_sound(cut, RULES).wave_S), "what is there is heard, as published"


def test_cover_art(box, tmp_path):
    path = with_cover(tmp_path)
    assert np.array_equal(hear(box, path.read_bytes()).wave_S, read_sound(path, RULES).wave_S)


def test_a_sound_is_no_video(box):
    with pytest.raises(RefusedMediaError, match="the video cannot be read"):
        asyncio.run(box.read("video", (MEDIA / "speech_stereo_44k.mp3").read_bytes()))


@pytest.mark.slow
def test_limits_of_bytes_and_time():
    content = wav(tone(1, 16000))
    small = Sandbox(policy(max_bytes=1000), rules=RULES)
    assert str(refusal(small, content)) == "the audio is larger than 1000 bytes"
    small.close()
    quick = Sandbox(policy(decode_timeout_s=0.05, max_bytes=128 << 20), rules=RULES)
    late = refusal(quick, wav(tone(600, 48_000), 48_000))
    assert late.code == "media_timeout" and "took longer than the 0.05 s" in str(late)
    quick.close()


def test_heard_once(box):
    path = MEDIA / "speech_mono_22k.wav"
    hits = box.cache.hits
    assert hear(box, path) is hear(box, path.read_bytes())
    assert box.cache.hits >= hits + 1


def good_reply(**changes):
    fields = {"dtype": "float32", "seconds": 1.5, "spans": [[0, 4]], "has_track": True}
    return {**fields, **changes}, [bytearray(np.zeros(4, np.float32).tobytes())]


def test_replies_are_not_trusted():
    sound = sound_of(*good_reply(), 4)
    assert asdict(sound)["spans"] == [(0, 4)] and len(sound.wave_S) == 4
    changes = (
        {"dtype": "object"},
        {"dtype": "float64"},
        {"seconds": float("nan")},
        {"seconds": "1"},
        {"spans": [[0, "1"]]},
        {"spans": [[0, 1]] * 5000},
        {"spans": None},
    )
    for change in changes:
        with pytest.raises(InvalidReplyError):
            sound_of(*good_reply(**change), 4)
    with pytest.raises(InvalidReplyError):
        sound_of(*good_reply(), 5)
    reply, _ = good_reply()
    with pytest.raises(InvalidReplyError, match="infinite"):
        sound_of(reply, [bytearray(np.full(4, np.inf, np.float32).tobytes())], 4)
