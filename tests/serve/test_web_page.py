"""The page in a real browser, with the tiny model behind it."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from tests.serve.helpers.pages import (
    CLIP,
    COLOUR,
    COUNT,
    LONG,
    PICTURE,
    SHAPE,
    SIZES,
    TINY,
    Open,
    Served,
    Visitor,
    user,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", SIZES)
def test_a_conversation(visit: Open, served: Served, size: str) -> None:
    """Upload, ask, follow up, regenerate, edit, switch the model, watch it stream, stop it, vote."""
    page = visit(size)
    page.upload(CLIP, frames=8)
    first = page.ask(COLOUR)
    assert first == served.expected(user(COLOUR, ("video", CLIP))) == "yellow"
    assert page.page.locator("#vl-chat video").count() == 1

    history = [user(COLOUR, ("video", CLIP)), {"role": "assistant", "content": first}]
    second = page.ask(SHAPE)
    assert second == served.expected(*history, user(SHAPE))
    assert page.questions() == [COLOUR, SHAPE]

    # The last question again, whatever stands in the box.
    asked = len(served.engine.answers)
    page.write("something else")
    assert page.regenerate() == second
    assert (page.questions(), page.box()) == ([COLOUR, SHAPE], "something else")
    assert len(served.engine.answers) == asked + 1
    assert served.engine.answers[-1].prompt == served.engine.answers[asked - 2].prompt

    page.press("edit")
    page.expect(page.page.locator("#vl-question textarea")).to_have_value(SHAPE)
    assert page.questions() == [COLOUR]
    third = page.ask("What is the shape of the red object?")
    assert third == served.expected(*history, user("What is the shape of the red object?"))
    assert page.questions() == [COLOUR, "What is the shape of the red object?"]

    page.choose_model(LONG)
    page.watch_answer(1)
    page.press("regenerate")
    page.wait_for_texts(3)
    page.press("stop")
    assert "Stopped." in page.answer()
    assert served.engine.answers[-1].result(timeout=60).finish_reason == "cancelled"
    texts = [text for text in page.seen() if "Stopped." not in text]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))

    page.press("up")
    assert "Thank you" in page.notice()
    page.expect(page.page.locator("#vl-up")).to_be_disabled()
    page.press("flag")
    page.expect(page.page.locator("#vl-flag")).to_be_disabled()
    lines = [json.loads(line) for line in served.log.read_text(encoding="utf-8").splitlines()[-2:]]
    assert [line["kind"] for line in lines] == ["up", "flag"]
    assert lines[0]["model"] == LONG
    assert lines[0]["messages"][0]["media"][0]["sha256"] == sha256(CLIP.read_bytes()).hexdigest()
    assert lines[0]["messages"][1] == {"role": "assistant", "text": first}


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_on_the_page(visit: Open, size: str) -> None:
    page = visit(size)
    page.expect(page.page.locator("#vl-model input")).to_have_value(TINY)
    page.expect(page.page.get_by_text("What would you like to know?")).to_be_visible()
    assert page.page.evaluate("() => window.scrollY") == 0
    page.expect(page.page.get_by_label("Question", exact=True)).to_be_visible()
    width = SIZES[size][0]
    assert page.page.evaluate("() => document.documentElement.scrollWidth") <= width
    for name in ("files", "chat", "question", "send", "regenerate", "edit", "up", "down", "flag", "clear", "terms"):
        box = page.page.locator(f"#vl-{name}").bounding_box()
        assert box is not None, name
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name
    page.page.get_by_text("Terms of use").click()
    page.expect(page.page.get_by_text("Answers are made by a machine")).to_be_visible()


def test_pictures_clips_and_frames_are_read_as_asked(visit: Open, served: Served) -> None:
    page = visit()
    page.page.get_by_text("Advanced").click()
    page.page.fill("#vl-num-frames input[type=number]", "4")
    page.page.fill("#vl-start textarea, #vl-start input", "0.5")
    page.page.fill("#vl-end textarea, #vl-end input", "1.5")
    page.page.keyboard.press("Tab")
    page.upload(CLIP, frames=4)
    page.expect(page.page.locator(".vl-frames header")).to_have_text("4 frames from 0.5 s to 1.5 s")
    answer = page.ask(SHAPE)
    clip = user(SHAPE, ("video", CLIP), num_frames=4, start=0.5, end=1.5)
    assert answer == served.expected(clip)
    page.upload(PICTURE, frames=1)
    picture = page.ask(COUNT)
    assert picture == served.expected(clip, {"role": "assistant", "content": answer}, user(COUNT, ("image", PICTURE)))


def test_several_media_in_one_question(page: Visitor, served: Served) -> None:
    page.upload(PICTURE, CLIP, frames=9)
    answer = page.ask(SHAPE)
    assert answer == served.expected(user(SHAPE, ("image", PICTURE), ("video", CLIP)))


def test_an_example_is_asked_at_once(page: Visitor, served: Served) -> None:
    page.expect(page.page.locator("#vl-chat .example")).to_have_count(3)  # none about sound for a model without ears
    page.page.locator("#vl-chat").get_by_text(COUNT).click()
    assert page.answer() == served.expected(user(COUNT, ("image", PICTURE))) == "three"
    page.expect(page.page.locator("#vl-chat .message img")).to_be_visible()
    page.press("clear")
    page.expect(page.page.get_by_text("What would you like to know?")).to_be_visible()


def test_a_recording_goes_to_the_question(visit: Open) -> None:
    page = visit(permissions=["camera"])
    page.page.get_by_role("tab", name="Camera").click()
    page.page.get_by_title("grant webcam access").click()
    page.record("#vl-camera", 900)
    page.expect(page.page.locator(".vl-strip img")).to_have_count(8)


_KEPT = "(localStorage.getItem('videollama2-conversation') || '').length"


def kept(page: Visitor) -> int:
    """Length of what the browser holds of the conversation, which is encrypted anew each time it is written."""
    return page.page.evaluate(f"() => {_KEPT}")


def wait_until_kept_differs(page: Visitor, before: int) -> int:
    """The browser writes a moment after the page has drawn."""
    page.page.wait_for_function(f"(before) => {_KEPT} !== before", arg=before)
    return kept(page)


def test_a_conversation_outlives_a_reload(visit: Open, served: Served) -> None:
    page = visit()
    page.upload(CLIP, frames=8)
    before = kept(page)
    first = page.ask(COLOUR)
    before = wait_until_kept_differs(page, before)
    page.page.reload()
    page.expect(page.page.locator("[data-testid=user] .message-content").last).to_have_text(COLOUR)
    assert page.answers() == [first]
    page.answered = 0
    history = [user(COLOUR, ("video", CLIP)), {"role": "assistant", "content": first}]
    assert page.ask(SHAPE) == served.expected(*history, user(SHAPE))
    before = wait_until_kept_differs(page, before)
    page.press("clear")
    page.expect(page.page.locator("[data-testid=user]")).to_have_count(0)
    wait_until_kept_differs(page, before)
    page.page.reload()
    page.expect(page.page.get_by_text("What would you like to know?")).to_be_visible()
    assert page.questions() == []


def test_a_conversation_is_saved_as_a_file(page: Visitor) -> None:
    page.upload(PICTURE)
    said = page.ask(COUNT)
    with page.page.expect_download() as download:
        page.press("save")
    assert download.value.suggested_filename == "conversation.md"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert COUNT in text
    assert said in text
    assert PICTURE.name in text


def test_two_models_side_by_side(visit: Open, served: Served) -> None:
    page = visit()
    page.page.get_by_text("Advanced").click()
    page.page.click("#vl-other input")
    page.page.get_by_role("option", name=TINY, exact=True).click()
    page.expect(page.page.locator("#vl-other-chat")).to_be_visible()
    page.upload(CLIP, frames=8)
    page.ask(COLOUR)
    own = page.page.locator("#vl-chat [data-testid=bot]")
    other = page.page.locator("#vl-other-chat [data-testid=bot]")
    assert own.all_inner_texts()[-1].strip() == "yellow"
    page.expect(other.last).to_have_text("yellow")
    boxes = [page.page.locator(f"#{name}").bounding_box() for name in ("vl-chat", "vl-other-chat")]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] + 1
    assert len(served.engine.answers) == 2
    page.page.click("#vl-other input")
    page.page.get_by_role("option", name="none", exact=True).click()
    page.expect(page.page.locator("#vl-other-chat")).to_be_hidden()


def test_system_text_and_seed_reach_the_model(visit: Open, served: Served) -> None:
    page = visit()
    page.page.get_by_text("Advanced").click()
    page.page.fill("#vl-system textarea", "Answer in one word.")
    page.page.fill("#vl-seed textarea, #vl-seed input", "7")
    page.page.locator("#vl-temperature input[type=number]").fill("1.5")
    page.upload(CLIP, frames=8)
    first = page.ask(COLOUR)
    system = {"role": "system", "content": "Answer in one word."}
    asked = [system, user(COLOUR, ("video", CLIP))]
    expected = served.engine.submit(asked, max_new_tokens=512, temperature=1.5, top_p=0.9, seed=7)
    assert first == expected.result(timeout=60).text.strip()


def test_on_a_phone_the_answer_is_in_sight(visit: Open) -> None:
    page = visit("phone")
    page.page.get_by_text("Advanced").click()
    page.expect(page.page.locator("#vl-system")).to_be_visible()
    page.ask(SHAPE)
    bot = page.page.locator("#vl-chat [data-testid=bot]").last
    page.expect(bot).to_be_in_viewport()
