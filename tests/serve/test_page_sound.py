"""The page with a model that sees and hears, in a browser: sound files, videos with their sound, the microphone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import golden_audio_dir
from tests.serve.helpers.chats import av_model
from tests.serve.helpers.pages import DEMO, SIZES, Open, RecordedEngine, Served, Visitor, serve, user
from videollama2.media.audio import ClipRules, read_video_sound
from videollama2.serve import gradio_web_server_adhoc_av
from videollama2.serve.page.waveform import title_of

MEDIA = golden_audio_dir() / "media"
SOUND, CLIP, SILENT = MEDIA / "speech_mono_22k.wav", MEDIA / "duet_cut.mp4", MEDIA / "video_no_audio.mp4"
FRAMES = 4
QUESTION = "What is heard?"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with (
        RecordedEngine(*av_model(), max_batch=2, max_length=4096) as engine,
        serve(engine, tmp_path_factory.mktemp("page")) as page,
    ):
        yield page


def short_answers(page: Visitor) -> None:
    """A random model does not stop by itself."""
    page.page.get_by_role("button", name="Advanced").click()
    page.page.fill("#vl-max-tokens input[type=number]", "24")
    page.page.press("#vl-max-tokens input[type=number]", "Enter")
    page.page.get_by_role("button", name="Advanced").click()


def expected(served: Served, *media: tuple[str, Any], **options: Any) -> str:
    own = [user(QUESTION, *media, **options)]
    return served.engine.submit(own, max_new_tokens=24).result(timeout=60).text.strip()


def said(page: Visitor, served: Served) -> str:
    """Ask, and return what the engine answered: a random model may write what the page takes for markup."""
    page.ask(QUESTION)
    return served.engine.answers[-1].result(timeout=60).text.strip()


def waves(page: Visitor, number: int) -> list[str]:
    box = page.page.locator("#vl-side").bounding_box()
    for label in page.page.locator("#vl-senses label").all():
        own = label.bounding_box()
        assert own["x"] + own["width"] <= box["x"] + box["width"] + 1, "a choice is cut off"
    page.expect(page.page.locator("#vl-frames .vl-wave svg")).to_have_count(number)
    return page.page.locator("#vl-frames .vl-wave header").all_inner_texts()


def use(page: Visitor, senses: str) -> None:
    page.page.locator("#vl-senses").get_by_text(senses, exact=True).click()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_sound_file(visit: Open, served: Served, size: str) -> None:
    page = visit(size)
    page.expect(page.page.locator("#vl-chat .example")).to_have_count(4)
    heading = page.page.get_by_text("What would you like to know?").bounding_box()
    assert heading["y"] >= page.page.locator("#vl-chat").bounding_box()["y"], "the heading is cut off"
    short_answers(page)
    page.upload(SOUND)
    assert waves(page, 1) == ["1.6 s of sound"]
    assert said(page, served) == expected(served, ("audio", SOUND))
    assert page.page.locator("#vl-chat audio, #vl-chat [data-testid*=audio], #vl-chat .audio-container").count(), (
        "a player"
    )
    assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_a_video_is_seen_and_heard_or_one_of_them(page: Visitor, served: Served) -> None:
    short_answers(page)
    use(page, "See and hear")
    page.upload(CLIP, frames=FRAMES)
    assert waves(page, 1) == ["7.0 s of sound, heard in 8 windows"]
    assert said(page, served) == expected(served, ("video", CLIP), use_audio=True)

    page.press("clear")
    use(page, "See only")
    page.upload(CLIP, frames=FRAMES)
    waves(page, 0)
    page.answered = 0
    assert said(page, served) == expected(served, ("video", CLIP))

    page.press("edit")  # the file and its use come back
    page.expect(page.page.locator("#vl-question textarea")).to_have_value(QUESTION)
    use(page, "Hear only")
    page.expect(page.page.locator(".vl-strip img")).to_have_count(0)
    waves(page, 1)
    assert said(page, served) == expected(served, ("audio", CLIP), of_video=True)


@pytest.mark.slow
def test_an_example_is_heard(page: Visitor, served: Served) -> None:
    short_answers(page)
    use(page, "See only")  # whatever was chosen before
    page.page.locator("#vl-chat").get_by_text("What made the noise?").click()
    page.answer()
    given = served.engine.answers[-1].result(timeout=60).text
    heard = user("What made the noise?", ("video", DEMO / "sounding_shapes.mp4"), use_audio=True)
    assert given == served.engine.submit([heard], max_new_tokens=24).result(timeout=60).text


@pytest.mark.slow
def test_a_silent_video_says_so(visit: Open) -> None:
    page = visit("desktop")
    page.upload(SILENT, frames=FRAMES)
    assert waves(page, 1) == ["no sound track: silence is heard"]


@pytest.mark.slow
def test_the_microphone(visit: Open, served: Served) -> None:
    page = visit("desktop", permissions=["microphone"])
    short_answers(page)
    page.page.get_by_role("tab", name="Microphone").click()
    page.record("#vl-microphone", 1000)
    assert "s of sound" in waves(page, 1)[0]
    assert page.ask(QUESTION)


@pytest.mark.slow
def test_a_recording_of_the_camera_is_seen_and_heard(visit: Open) -> None:
    page = visit("desktop", permissions=["camera", "microphone"])
    short_answers(page)
    # The page has learnt that the model hears, and the camera records sound from now on.
    page.expect(page.page.get_by_role("tab", name="Microphone")).to_be_visible()
    page.page.get_by_role("tab", name="Camera").click()
    page.page.get_by_title("grant webcam access").click()
    page.record("#vl-camera", 1000)
    page.expect(page.page.locator(".vl-strip img")).to_have_count(FRAMES)
    (told,) = waves(page, 1)
    assert "s of sound" in told, "it has a sound track"
    assert page.ask(QUESTION)


def test_what_is_heard_of_a_long_track_is_told() -> None:
    found = [read_video_sound(CLIP, ClipRules(num_windows=number)) for number in (1, 3)]
    assert [title_of(sound, of_video=True) for sound in found] == [
        "7.0 s of sound, heard in one window",
        "7.0 s of sound, heard in 3 windows",
    ]


@pytest.mark.slow
def test_the_command_needs_a_model_that_hears(capsys: pytest.CaptureFixture[str]) -> None:
    assert gradio_web_server_adhoc_av.main(["--model-path", "videollama2-tiny"]) == 2
    assert "videollama2-tiny: has no audio encoder; serve it with gradio_web_server_adhoc.py" in capsys.readouterr().err
