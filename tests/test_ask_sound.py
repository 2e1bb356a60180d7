"""``ask`` and ``chat`` about sound."""

import io
import json
import re

import pytest
import torch

from tests.conftest import golden_audio_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.cli import main
from videollama2.inference.chat import Chat
from videollama2.inference.engine import Engine


@pytest.fixture(scope="module")
def av_model():
    return str(golden_audio_dir() / "models" / "qwen2-stc_connector_v35-siglip-beats")


@pytest.mark.slow
def test_sound(av_model, capsys):
    """A model that hears hears videos too, unless it is told otherwise; each way gives another prompt."""
    media = golden_audio_dir() / "media"
    lengths = {}
    for flags in ((), ("--no-audio",), ("--audio-only",)):
        arguments = ["ask", str(media / "demo1_cut.mp4"), "What made the noise?", "--model-path", av_model, "--json"]
        assert main([*arguments, "--max-new-tokens", "4", *flags]) == 0
        lengths[flags] = json.loads(capsys.readouterr().out)["usage"]["prompt_tokens"]
    # 1496 tokens of sound, 12 of sight; the question and its frame are in all of them.
    assert lengths[()] - lengths[("--no-audio",)] == 1496
    assert lengths[()] > lengths[("--audio-only",)] > 1496
    arguments = [str(media / "video_no_audio.mp4"), "What is heard?", "--model-path", av_model, "--max-new-tokens", "4"]
    assert main(["ask", *arguments]) == 0
    assert "no sound track: silence is heard" in capsys.readouterr().err
    assert main(["ask", str(media / "speech_mono_16k.wav"), *arguments[1:]]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "flags", "message"),
    [
        ("silent_16k.wav", ["--num-frames", "4"], "is a sound; --num-frames can only be given for a video"),
        ("silent_16k.wav", ["--no-audio"], "--no-audio and --audio-only can only be given for a video"),
        ("not_audio.wav", [], "not_audio.wav"),
        ("empty_16k.wav", [], r"its sound track is empty \(0 s\)"),
        ("silent_16k.wav", ["--start", "5"], "there is no sound between 5 s and its end"),
    ],
)
def test_sound_that_cannot_be_asked_about(av_model, capsys, file, flags, message):
    path = str(golden_audio_dir() / "media" / file)
    assert main(["ask", path, "What is heard?", "--model-path", av_model, *flags]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_sound_for_a_model_that_does_not_hear(capsys):
    path = str(golden_audio_dir() / "media" / "silent_16k.wav")
    assert main(["ask", path, "What is heard?", "--model-path", "videollama2-tiny"]) == 2
    assert "this model has no audio encoder" in capsys.readouterr().err


def test_chat(av_model):
    media = golden_audio_dir() / "media"
    model, processor = load_checkpoint(av_model, dtype=torch.float32)
    out = io.StringIO()
    with Engine(model.eval(), processor, max_batch=1, max_length=4096, background=False) as engine:
        chat = Chat(engine, {"use_audio": True}, {"max_new_tokens": 4}, out)
        assert "/audio PATH" in chat.greeting
        chat.handle(f"/audio {media / 'speech_mono_16k.wav'}")
        chat.handle(f"/video {media / 'video_no_audio.mp4'}")
        chat.handle("What is heard?")
        assert "speech_mono_16k.wav, heard)" in out.getvalue()
        assert "4 frames, the video has no sound track: silence is heard)" in out.getvalue()
        assert [part["type"] for part in chat.messages[0]["content"]] == ["audio", "video", "text"]
        only = Chat(engine, {"use_audio": True}, {"max_new_tokens": 4}, out, audio_only=True)
        part, said = only.read_medium("video", str(media / "demo1_cut.mp4"))
        assert (part["type"], part["of_video"], said) == ("audio", True, "heard")
        only.handle("/audio missing.wav")
        assert "error: missing.wav: no such file" in out.getvalue()


def test_a_model_that_does_not_hear_offers_no_sound(golden):
    model, processor = load_checkpoint(golden / "models" / "qwen2-stc_connector-clip", dtype=torch.float32)
    out = io.StringIO()
    with Engine(model.eval(), processor, max_batch=1, max_length=512, background=False) as engine:
        chat = Chat(engine, {}, {}, out)
        assert "/audio" not in chat.greeting
        chat.handle("/audio a.wav")
        assert "no command /audio" in out.getvalue()
