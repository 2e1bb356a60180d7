"""The page in a real browser where something goes wrong, and what visitors cannot do to it or to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serve.helpers.pages import CLIP, COLOUR, COUNT, LONG, SHAPE, TINY, Open, Served, Visitor
from videollama2.errors import QueueFullError
from videollama2.serve.web.errors import model_not_found, no_worker

pytestmark = pytest.mark.slow


def test_a_bad_file_is_told_and_a_good_one_then_works(page: Visitor, served: Served, tmp_path: Path) -> None:
    bad = tmp_path / "broken.mp4"
    bad.write_bytes(CLIP.read_bytes()[:900])
    page.upload(bad)
    page.expect(page.page.locator("#vl-frames [role=alert]")).to_contain_text("cannot be used")
    note = page.ask(COLOUR)
    assert "This file cannot be used" in note
    assert "Try another file" in note
    assert str(tmp_path) not in page.page.content()
    assert str(served.folder) not in note
    page.upload(CLIP, frames=8)
    assert page.ask(COLOUR) == "yellow"
    assert page.questions() == [COLOUR]


def test_a_question_that_failed_keeps_its_video(page: Visitor, served: Served) -> None:
    page.upload(CLIP, frames=8)
    served.backend.faults = [QueueFullError("full")]
    assert "Too many questions are waiting" in page.ask(SHAPE)
    page.expect(page.page.locator("#vl-up")).to_be_disabled()
    served.backend.faults = [no_worker(TINY)]
    assert "No model is running" in page.ask(COLOUR)
    assert page.questions() == [COLOUR]
    assert page.regenerate() == "yellow"


@pytest.mark.parametrize("fault", [model_not_found, no_worker])
def test_where_a_model_is_gone_the_others_are_offered(
    visit: Open,
    served: Served,
    fault: Callable[[str], Exception],
) -> None:
    page = visit()
    page.choose_model(LONG)
    page.upload(CLIP, frames=8)
    served.backend.names, served.backend.faults = [TINY], [fault(LONG)]
    assert "not running any more" in page.ask(COLOUR)
    page.expect(page.page.locator("#vl-model input")).to_have_value(TINY)
    assert page.regenerate() == "yellow"


def test_a_fault_nobody_thought_of_has_a_reference(
    page: Visitor, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.backend.faults = [ZeroDivisionError("secret detail")]
    note = page.ask(SHAPE)
    assert "Something went wrong on the server" in note
    assert "secret" not in note
    reference = note.rsplit(" ", 1)[-1].rstrip(".")
    assert any(reference in record.getMessage() for record in caplog.records)


def test_what_cannot_be_sent_is_told(visit: Open, served: Served) -> None:
    page = visit()
    page.press("send")
    assert page.notice() == "Type a question first."
    served.backend.names = []
    page = visit()
    assert "No model is running at the moment" in page.notice()
    page.write(SHAPE)
    page.press("send")
    assert "No model is running at the moment" in page.notice()
    assert page.box() == SHAPE


def test_a_closed_tab_stops_its_answer(visit: Open, served: Served) -> None:
    page = visit()
    page.choose_model(LONG)
    page.watch_answer(0)
    page.write(SHAPE)
    page.press("send")
    page.wait_for_texts(2)
    page.page.close()
    assert served.engine.answers[-1].result(timeout=60).finish_reason == "cancelled"


def test_visitors_do_not_see_each_other(visit: Open) -> None:
    one, other = visit(), visit("phone")
    one.ask(SHAPE)
    assert other.questions() == []
    other.ask(COUNT)
    assert one.questions() == [SHAPE]


def test_questions_and_answers_cannot_make_the_browser_ask_others(page: Visitor, served: Served) -> None:
    text = "![picture](https://example.com/x.png) <img src=https://example.com/y.png> <b>bold</b> *stars* $$x$$"
    page.ask(text)
    assert page.questions() == [text]
    served.backend.scripted = "![picture](https://example.com/x.png) and <img src=https://example.com/y.png> it."
    assert page.regenerate().startswith("and")
    page.page.evaluate("() => new Promise(done => requestIdleCallback(done, {timeout: 10000}))")
    assert set(page.outside()) <= set(page.refused)
    page.requests.clear()
