"""Who answers the page: the engine in this process, or workers behind a controller. Same messages, same answers."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.serve.helpers.processes import Installation
from tests.serve.helpers.servers import StrangeWorker, begin
from videollama2.errors import MediaError
from videollama2.inference.engine import Engine
from videollama2.media.kinds import mime_type
from videollama2.serve.cluster.client import ControllerClient
from videollama2.serve.long_text import dumped
from videollama2.serve.page.backends import ControllerBackend, LocalBackend, PageBackend
from videollama2.serve.page.conversation import Conversation, Medium
from videollama2.serve.settings import MediaPolicy
from videollama2.serve.web.errors import ApiError
from videollama2.serve.web.sse import read_events

TINY = "videollama2-tiny"
DEMO = ROOT / "videollama2" / "assets" / "demo"
CLIP, PICTURE = DEMO / "moving_shapes.mp4", DEMO / "shapes.png"
POLICY = MediaPolicy(decode_processes=1)
GREEDY = {"temperature": 0.0, "top_p": 0.9, "max_new_tokens": 512}

CONVERSATION = Conversation()
for _question, _answer, _media in (
    ("How many objects can be seen?", "three", (Medium("image", str(PICTURE)),)),
    ("Which colour does the square change to?", "yellow", (Medium("video", str(CLIP), {"num_frames": 8}),)),
    ("What is the shape of the white object?", "", ()),
):
    _turn = CONVERSATION.begin(_question, _media)
    _turn.answer, _turn.outcome = _answer, "done" if _answer else ""

FIRST = Conversation()
FIRST.begin("Which object moves first, the white cross or the red circle?", (Medium("video", str(CLIP)),))


async def ask(backend: PageBackend, conversation: Conversation, model: str = TINY, **options: Any) -> list[str]:
    stream = backend.stream(model, conversation.messages(), {**GREEDY, **options})
    return [delta async for delta in stream]


@pytest.fixture(scope="module")
def own(tiny_engine: Engine) -> Iterator[LocalBackend]:
    backend = LocalBackend({TINY: tiny_engine}, POLICY)
    yield backend
    for sandbox in backend._sandboxes.values():
        sandbox.close()


@pytest.fixture
def through_controller(installation: Installation) -> Iterator[Callable[[], ControllerBackend]]:
    """Makes back ends, each for one event loop."""
    made = []

    def make() -> ControllerBackend:
        made.append(ControllerBackend(ControllerClient(installation.controller.url), POLICY))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.mark.slow
@pytest.mark.parametrize("conversation", [FIRST, CONVERSATION], ids=["one", "several turns"])
def test_answers_are_the_engines_own(own: LocalBackend, tiny_engine: Engine, conversation: Conversation) -> None:
    expected = tiny_engine.submit(conversation.messages(), max_new_tokens=32).result(timeout=60).text
    assert "".join(asyncio.run(ask(own, conversation))) == expected


@pytest.mark.slow
@pytest.mark.parametrize("conversation", [FIRST, CONVERSATION], ids=["one", "several turns"])
def test_answers_through_the_controller_are_the_same(
    through_controller: Callable[[], ControllerBackend], tiny_engine: Engine, conversation: Conversation
) -> None:
    expected = tiny_engine.submit(conversation.messages(), max_new_tokens=32).result(timeout=60).text
    backend = through_controller()
    assert "".join(asyncio.run(ask(backend, conversation))) == expected


@pytest.mark.slow
def test_models_and_frames(own: LocalBackend, through_controller: Callable[[], ControllerBackend]) -> None:
    async def run(backend: PageBackend) -> tuple[list[str], int]:
        return await backend.models(refresh=True), await backend.num_frames(TINY)

    assert asyncio.run(run(own)) == ([TINY], 8)
    assert asyncio.run(run(through_controller())) == ([TINY], 8)


@pytest.mark.slow
def test_a_longest_answer_that_does_not_fit_is_no_error(
    own: LocalBackend, through_controller: Callable[[], ControllerBackend]
) -> None:
    usual = asyncio.run(ask(own, FIRST))
    assert asyncio.run(ask(own, FIRST, max_new_tokens=2048)) == usual
    assert "".join(asyncio.run(ask(through_controller(), FIRST, max_new_tokens=2048))) == "".join(usual)


@pytest.mark.slow
def test_a_model_there_is_not(own: LocalBackend, through_controller: Callable[[], ControllerBackend]) -> None:
    for backend in (own, through_controller()):
        with pytest.raises(ApiError) as caught:
            asyncio.run(ask(backend, FIRST, model="nobody"))
        assert caught.value.code == "model_not_found"


@pytest.mark.slow
def test_bad_media(own: LocalBackend, through_controller: Callable[[], ControllerBackend], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(CLIP.read_bytes()[:900])
    conversation = Conversation()
    conversation.begin("What is it?", (Medium("video", str(bad)),))
    with pytest.raises(MediaError):
        asyncio.run(ask(own, conversation))
    with pytest.raises(ApiError) as caught:
        asyncio.run(ask(through_controller(), conversation))
    assert caught.value.code == "invalid_media"
    bad.unlink()
    for backend in (own, through_controller()):
        with pytest.raises(MediaError):
            asyncio.run(ask(backend, conversation))


def test_leaving_an_answer_frees_the_engine(own: LocalBackend, tiny_engine: Engine) -> None:
    async def run() -> None:
        stream = own.stream(TINY, FIRST.messages(), {**GREEDY, "max_new_tokens": 400, "min_new_tokens": 400})
        async for _ in stream:
            break
        await stream.aclose()
        # Another answer is only complete after a step that dropped the first.
        await ask(own, FIRST)

    asyncio.run(run())
    assert tiny_engine.load["decoding"] == 0


def test_no_controller() -> None:
    async def run() -> None:
        backend = ControllerBackend(ControllerClient("http://127.0.0.1:9"), POLICY)
        try:
            await backend.models()
        finally:
            backend.close()

    with pytest.raises(ApiError) as caught:
        asyncio.run(run())
    assert caught.value.code == "unreachable"


def test_a_list_asked_for_once_is_asked_again_only_while_it_is_empty() -> None:
    class Client:
        lists = [[], ["a"], ["b"]]

        async def models(self, refresh: bool = False) -> list[str]:
            return self.lists.pop(0)

    async def run(refresh: bool) -> list[list[str]]:
        Client.lists = [[], ["a"], ["b"]]
        backend = ControllerBackend(Client(), POLICY, refresh=refresh)
        try:
            return [await backend.models(refresh=True) for _ in range(3)]
        finally:
            backend.close()

    assert asyncio.run(run(refresh=False)) == [[], ["a"], ["a"]]
    assert asyncio.run(run(refresh=True)) == [[], ["a"], ["b"]]


# ---------------------------------------------------------------------------------------------------------- the stream


async def events_of(content: bytes, size: int) -> list[dict[str, Any]]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    return [event async for event in read_events(chunks())]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_events_may_be_cut_anywhere(size: int) -> None:
    content = ': note\r\n\r\ndata: {"a": "ü"}\r\n\r\ndata:{"b": 2}\n\ndata: [DONE]\n\ndata: {"c": 3}\n\n'.encode()
    assert asyncio.run(events_of(content, size)) == [{"a": "ü"}, {"b": 2}]


@pytest.mark.parametrize("content", [b"data: {broken\n\n", b"data: [1]\n\n"])
def test_broken_events_are_an_error(content: bytes) -> None:
    with pytest.raises(ApiError):
        asyncio.run(events_of(content, 5))


def test_an_error_inside_a_stream_comes_after_the_text_before_it() -> None:
    async def worker(path: str, body: bytes, writer: Any) -> None:
        text = b'data: {"choices": [{"delta": {"content": "begun"}}]}\n\n'
        await begin(writer, text, b'data: {"error": {"message": "gone", "code": "worker_failed"}}\n\n')
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def run(url: str) -> list[str]:
        client = ControllerClient("http://127.0.0.1:9")
        client._chooser = lambda model, affinity=None: lambda tried: _choice(url)
        backend, found = ControllerBackend(client, POLICY), []
        try:
            async for delta in backend.stream(TINY, [{"role": "user", "content": "hello"}], GREEDY):
                found.append(delta)
        except ApiError as error:
            found.append(error.code)
        finally:
            backend.close()
        return found

    with StrangeWorker(worker) as strange:
        assert asyncio.run(run(strange.url)) == ["begun", "worker_failed"]


async def _choice(url: str) -> tuple[str, str]:
    return url, url


def test_media_travel_as_data(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []

    class Client:
        def open_chat(self, body: dict[str, Any], request_id: str) -> Any:
            sent.append(json.loads(dumped(body)))
            raise ApiError(503, "enough")

    async def run() -> None:
        backend = ControllerBackend(Client(), POLICY)
        try:
            await ask(backend, CONVERSATION)
        finally:
            backend.close()

    with pytest.raises(ApiError, match="enough"):
        asyncio.run(run())
    first, _, second, _, third = sent[0]["messages"]
    picture = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    assert first["content"][0] == {"type": "image_url", "image_url": {"url": picture}}
    assert second["content"][0]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert second["content"][0]["mm_processor_kwargs"] == {"num_frames": 8}
    assert third["content"] == [{"type": "text", "text": "What is the shape of the white object?"}]
    assert (sent[0]["temperature"], sent[0]["max_completion_tokens"], sent[0]["stream"]) == (0.0, 512, True)


def test_media_types_agree_with_the_kind() -> None:
    assert mime_type("video", Path("a.webm")) == "video/webm"
    assert mime_type("video", Path("a.gif")) == "image/gif"
    assert mime_type("video", Path("a.jpg")) == "video/mp4"
    assert mime_type("image", Path("a.unknown")) == "image/png"
