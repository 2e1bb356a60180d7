"""A page with the tiny model in this process, and a browser to look at it.

Gradio, whose import takes as long as torch's, is imported by the tests that need it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from videollama2.inference.answer import Answer
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request
from videollama2.serve.page.backends import LocalBackend
from videollama2.serve.page.server import launch_page, uploads_folder
from videollama2.serve.page.votes import VoteLog
from videollama2.serve.settings import MediaPolicy

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="the web page needs gradio (the extra serve)"
)

TINY, LONG = "videollama2-tiny", "tiny-long"
DEMO = ROOT / "videollama2" / "assets" / "demo"
CLIP, PICTURE = DEMO / "moving_shapes.mp4", DEMO / "shapes.png"
PATIENCE_MS = 120_000
"""How long a test waits for the browser. On a busy machine, one answer of the page may take a minute."""
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}

COLOUR, SHAPE = "Which colour does the square change to?", "What is the shape of the white object?"
COUNT = "How many objects can be seen?"

LONG_TOKENS, LONG_STEP_S = 500, 0.01
"""The tiny model answers in a word, at once. Asked as :data:`LONG`, it may not end before so many tokens, and takes so
long for each: like a large one, it can be seen writing and be stopped in time."""

_CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)

_CAMERA_WIDTH, _CAMERA_HEIGHT, _CAMERA_FPS = 160, 120, 5
"""What the false camera delivers, whatever the page would like best: the processor draws and encodes it all. At the
640 x 480 and 20 frames a second of Chromium's own, a busy machine had no time left for the page that shows them."""


def write_camera(path: Path) -> None:
    """Write a second of a bar that moves, as Chromium plays it in place of a camera: YUV4MPEG2."""
    luma, chroma = np.full((_CAMERA_HEIGHT, _CAMERA_WIDTH), 64, np.uint8), _CAMERA_WIDTH * _CAMERA_HEIGHT // 2
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{_CAMERA_WIDTH} H{_CAMERA_HEIGHT} F{_CAMERA_FPS}:1 Ip A1:1 C420jpeg\n".encode())
        for number in range(_CAMERA_FPS):
            picture = luma.copy()
            picture[:, 32 * number : 32 * (number + 1)] = 192
            file.write(b"FRAME\n" + picture.tobytes() + bytes([128]) * chroma)


_FORGET = """
if (!sessionStorage.getItem('opened')) { localStorage.clear(); sessionStorage.setItem('opened', 'yes'); }
"""
"""Run before a page's own scripts: a page that is opened finds nothing, one that is loaded again what it has kept."""


class RecordedEngine(Engine):
    """Keeps its answers, so that a test can ask what became of them."""

    answers: list[Answer]
    step_seconds = 0.0

    def submit_request(self, request: Request) -> Answer:
        answer = super().submit_request(request)
        self.__dict__.setdefault("answers", []).append(answer)
        return answer


class TwoModels(LocalBackend):
    """One engine under two names. ``names``: what the page is told there is."""

    def __init__(self, engine: RecordedEngine) -> None:
        super().__init__({TINY: engine, LONG: engine}, MediaPolicy(decode_processes=1))
        self.names, self.recorded = list(self.engines), engine
        self.faults: list[Exception] = []
        """Raised, each once, in place of an answer."""
        self.scripted = ""
        """Said once in place of an answer."""

    async def models(self, refresh: bool = False) -> list[str]:
        return self.names

    async def stream(
        self, model: str, messages: Sequence[dict[str, Any]], options: Mapping[str, Any]
    ) -> AsyncGenerator[str, None]:
        if self.faults:
            raise self.faults.pop()
        if self.scripted:
            text, self.scripted = self.scripted, ""
            yield text
            return
        if model == LONG:
            options = {**options, "min_new_tokens": LONG_TOKENS}
        self.recorded.step_seconds = LONG_STEP_S if model == LONG else 0.0
        async for delta in super().stream(model, messages, options):
            yield delta


class Served:
    """A page that runs, with what is behind it."""

    def __init__(self, address: str, backend: TwoModels, engine: RecordedEngine, log: Path, folder: Path) -> None:
        self.address, self.backend, self.engine, self.log, self.folder = address, backend, engine, log, folder

    def expected(self, *messages: dict[str, Any]) -> str:
        """The engine's own greedy answer; media by path, as ``videollama2 ask`` reads them."""
        return self.engine.submit(list(messages), max_new_tokens=512).result(timeout=60).text.strip()


def user(question: str, *media: tuple[str, Path], **options: Any) -> dict[str, Any]:
    """A message."""
    parts = [{"type": kind, "path": str(path), **options} for kind, path in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


@contextmanager
def serve(engine: RecordedEngine, folder: Path) -> Iterator[Served]:
    """Run a page on a free port; skips the test where Gradio is not installed."""
    pytest.importorskip("gradio", reason="the web page needs gradio (the extra serve)")
    from videollama2.serve.page.build import build_page
    from videollama2.serve.page.layout import PageSettings

    with uploads_folder() as uploads:
        backend, log = TwoModels(engine), folder / "votes.jsonl"
        settings = PageSettings(log=VoteLog(log), concurrency=4, max_queue=8, uploads=uploads)
        running = launch_page(build_page(backend, settings), uploads, port=0, max_file_bytes=4 << 20)
        try:
            yield Served(running.address, backend, engine, log, uploads)
        finally:
            running.close()
            for sandbox in set(backend._sandboxes.values()):
                sandbox.close()


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A Chromium, or the reason to skip why there is none; ``folder`` gets the picture of its camera."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the tests in a browser need playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("the tests in a browser need chromium")
    camera = folder / "bar.y4m"
    write_camera(camera)
    with playwright.sync_playwright() as runner:
        flags = [*_CHROMIUM_FLAGS, f"--use-file-for-fake-video-capture={camera}"]
        chromium = runner.chromium.launch(executable_path=found, args=flags, timeout=PATIENCE_MS)
        yield Browser(chromium)
        chromium.close()


class Browser:
    """A browser whose windows of one kind share what it has learnt of a page's files, and nothing else."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium
        self._windows: dict[tuple[str, str], Any] = {}
        self.visitor: Visitor | None = None
        """Somebody whose page several tests use, one after the other."""

    def open(self, size: str, **options: Any) -> Any:
        """Open an empty page in a window of this size; its first address finds no cookies and nothing stored."""
        key = (size, repr(sorted(options.items())))
        if key not in self._windows:
            width, height = SIZES[size]
            window = self._chromium.new_context(viewport={"width": width, "height": height}, **options)
            window.set_default_timeout(PATIENCE_MS)
            self._windows[key] = window
        self._windows[key].clear_cookies()
        page = self._windows[key].new_page()
        page.add_init_script(_FORGET)
        return page


class Visitor:
    """Somebody with the page open; does what a person does and reads what a person sees."""

    def __init__(self, browser: Browser, address: str, size: str = "desktop", **options: Any) -> None:
        from playwright.sync_api import expect

        self.expect = expect
        expect.set_options(timeout=PATIENCE_MS)
        self.page = browser.open(size, **options)
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.refused: list[str] = []
        self.page.on("requestfailed", lambda request: self.refused.append(request.url))
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.address, self.answered = address, 0
        self.page.goto(address)
        self.page.wait_for_selector("#vl-question textarea")
        # The list of models has come once one is chosen or it is told that there is none.
        self.page.wait_for_function(
            "() => document.querySelector('#vl-model input').value || document.querySelector('#vl-notice .vl-note')"
        )

    def close(self) -> None:
        self.page.close()

    def begin_anew(self) -> None:
        """Clear the conversation, for the next test that uses this page."""
        self.write("")
        if self.questions():
            self.press("clear")
        self.expect(self.page.get_by_text("What would you like to know?")).to_be_visible()
        self.answered = 0
        for told in (self.requests, self.refused, self.faults):
            told.clear()

    def outside(self) -> list[str]:
        """Requests that left the page's own origin."""
        return [url for url in self.requests if not url.startswith((self.address, "data:", "blob:"))]

    def record(self, area: str, milliseconds: int) -> None:
        """Record with the camera or microphone in ``area``, whose tab is open."""
        buttons = self.page.locator(area).get_by_role("button")
        buttons.filter(has_text=re.compile("^\\s*Record\\s*$")).first.click()
        stop = buttons.filter(has_text=re.compile("^\\s*Stop\\s*$")).first
        self.expect(stop).to_be_visible()
        self.page.wait_for_timeout(milliseconds)
        # A click of the mouse waits for the button to stand still in two frames, which may be long in coming while
        # pictures are encoded or the wave of the sound is drawn.
        stop.dispatch_event("click")

    def upload(self, *paths: Path, frames: int | None = None) -> None:
        """Choose files; waits for the pictures of ``frames`` frames."""
        self.page.set_input_files("#vl-files input[type=file]", [str(path) for path in paths])
        if frames is not None:
            self.expect(self.page.locator(".vl-strip img")).to_have_count(frames)

    def write(self, text: str) -> None:
        self.page.fill("#vl-question textarea", text)

    def press(self, name: str) -> None:
        """A button, once it can be pressed."""
        self.page.locator(f"#vl-{name}").click()

    def ask(self, question: str) -> str:
        """Send a question and wait for its whole answer."""
        self.write(question)
        self.press("send")
        return self.answer()

    def regenerate(self) -> str:
        """Have the last question answered again."""
        self.press("regenerate")
        return self.answer()

    def answer(self) -> str:
        """Wait until one more answer than before is complete."""
        self.answered += 1
        self.expect(self.page.locator("#vl-status")).to_have_text(f"Answer {self.answered} is complete.")
        self.expect(self.page.locator("#vl-send")).to_be_visible()
        return self.answers()[-1]

    def answers(self) -> list[str]:
        """Texts of all answers and notes in the conversation."""
        return [text.strip() for text in self.page.locator("[data-testid=bot]").all_inner_texts()]

    def questions(self) -> list[str]:
        """Texts of all questions."""
        return [text.strip() for text in self.page.locator("[data-testid=user] .message-content").all_inner_texts()]

    def box(self) -> str:
        """What stands in the box."""
        return self.page.input_value("#vl-question textarea")

    def choose_model(self, name: str) -> None:
        self.page.click("#vl-model input")
        self.page.get_by_role("option", name=name, exact=True).click()
        self.expect(self.page.locator("#vl-model input")).to_have_value(name)

    def watch_answer(self, number: int) -> None:
        """Note every text that an answer has from now on; answers are numbered from 0."""
        script = """(number) => {
            window.seen = [];
            new MutationObserver(() => {
                const answer = document.querySelectorAll('[data-testid=bot] .message-content')[number];
                const text = answer ? answer.innerText.trim() : '';
                if (text && text !== window.seen[window.seen.length - 1]) window.seen.push(text);
            }).observe(document.querySelector('#vl-chat'), {subtree: true, childList: true, characterData: true});
        }"""
        self.page.evaluate(script, number)

    def seen(self) -> list[str]:
        return self.page.evaluate("() => window.seen")

    def wait_for_texts(self, number: int) -> None:
        """Until the watched answer has had so many texts; tells what there was instead when they do not come."""
        from playwright.sync_api import TimeoutError as Late

        try:
            self.page.wait_for_function("(number) => window.seen.length >= number", arg=number)
        except Late:
            model = self.page.locator("#vl-model input").input_value()
            raise AssertionError(f"{model}: {self.seen()}, {self.page.inner_text('body')[:2000]}") from None

    def notice(self) -> str:
        """The line above the conversation, once it is there."""
        self.expect(self.page.locator("#vl-notice .vl-note")).to_be_visible()
        return re.sub(r"\s+", " ", self.page.locator("#vl-notice").inner_text()).strip()


Open = Callable[..., Visitor]
"""Opens the page, in a window of a size: the fixture ``visit``."""
