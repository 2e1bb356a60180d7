"""One question about a sound, and one about a video with its sound, through every door: the answers are equal."""

import asyncio
import base64
import io

import pytest

from tests.conftest import golden_audio_dir
from tests.serve.helpers.chats import av_engine
from tests.serve.helpers.controllers import ControllerThread
from tests.serve.helpers.media import audio_part, policy, text_part, user
from tests.serve.helpers.servers import AppThread, frames_of, http
from videollama2.serve.cli import RemoteChat
from videollama2.serve.cluster.client import ControllerClient
from videollama2.serve.cluster.front import ApiFront, make_front_app
from videollama2.serve.page.backends import ControllerBackend, LocalBackend
from videollama2.serve.page.conversation import Conversation, Medium
from videollama2.serve.settings import MediaPolicy, Security
from videollama2.serve.untrusted_media.sandbox import Sandbox
from videollama2.serve.worker.app import WorkerService, make_worker_app

MEDIA = golden_audio_dir() / "media"
SOUND, CLIP = MEDIA / "door_cut.wav", MEDIA / "duet_cut.mp4"
MODEL, QUESTION, TOKENS = "av", "What is heard?", 24
CASES = {
    "sound": ("audio", SOUND, {}),
    "seen and heard": ("video", CLIP, {"use_audio": True}),
    "heard only": ("audio", CLIP, {"of_video": True}),
}


@pytest.fixture(scope="module")
def engine():
    with av_engine() as found:
        yield found


@pytest.fixture(scope="module")
def worker(engine):
    rules = policy()
    sandbox = Sandbox.of(rules, engine.processor)
    with AppThread(make_worker_app(WorkerService(engine, MODEL, rules, sandbox), Security())) as found:
        yield found
    sandbox.close()


@pytest.fixture(scope="module")
def controller(worker):
    with ControllerThread() as found:
        body = {"worker_name": worker.url, "check_heart_beat": False}
        assert http.post(found.url + "/register_worker", json=body).status_code == 200
        yield found


@pytest.fixture(scope="module")
def answers(engine):
    """The engine's own answers about files, as ``videollama2 ask`` gets them."""
    found = {}
    for name, (kind, path, options) in CASES.items():
        messages = [user({"type": kind, "path": str(path), **options}, text_part(QUESTION))]
        found[name] = engine.submit(messages, max_new_tokens=TOKENS).result(60).text
    assert len(set(found.values())) == len(CASES), "the cases sound different"
    return found


def from_frames(address, *media, **fields):
    images = [base64.b64encode(path.read_bytes()).decode() for path in media]
    body = {"model": MODEL, "prompt": QUESTION, "images": images, "temperature": 0, "max_new_tokens": TOKENS, **fields}
    last = frames_of(http.post(address + "/worker_generate_stream", json={**body, "echo": False}, timeout=60).content)[
        -1
    ]
    assert last["error_code"] == 0, last
    return last["text"]


@pytest.mark.slow
def test_the_published_stream(worker, controller, answers):
    for address in (worker.url, controller.url):
        assert from_frames(address, SOUND) == answers["sound"]
        assert from_frames(address, SOUND, prompt=f"<audio>\n{QUESTION}") == answers["sound"]
        assert from_frames(address, CLIP, use_audio=True) == answers["seen and heard"]
        assert from_frames(address, CLIP) not in answers.values()


@pytest.mark.slow
def test_the_front(controller, answers):
    front = make_front_app(ApiFront(ControllerClient(controller.url)), Security())
    with AppThread(front) as api:
        body = {
            "model": MODEL,
            "messages": [user(audio_part(SOUND.read_bytes()), text_part(QUESTION))],
            "max_tokens": TOKENS,
        }
        reply = http.post(api.url + "/v1/chat/completions", json=body, timeout=60).json()
    assert "choices" in reply, reply
    assert reply["choices"][0]["message"]["content"] == answers["sound"]
    assert reply["usage"]["prompt_tokens_details"]["audio_tokens"] == 1496


@pytest.mark.slow
def test_the_terminal(controller, answers):
    for command, options, name in (
        (f"/audio {SOUND}", {}, "sound"),
        (f"/video {CLIP}", {"use_audio_in_video": True}, "seen and heard"),
    ):
        chat = RemoteChat(
            controller.url, media_options=options, options={"max_completion_tokens": TOKENS}, out=io.StringIO()
        )
        chat.choose_model()
        assert "/audio PATH" in chat.greeting
        chat.handle(command)
        chat.handle(QUESTION)
        assert answers[name] in chat.out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_page(engine, controller, answers, name):
    kind, path, options = CASES[name]
    talk = Conversation()
    talk.begin(QUESTION, (Medium(kind, str(path), options),))

    async def said(backend):
        try:
            assert set(await backend.kinds(MODEL)) == {"image", "video", "audio"}
            pieces = backend.stream(MODEL, talk.messages(), {"max_new_tokens": TOKENS, "temperature": 0.0})
            return "".join([piece async for piece in pieces])
        finally:
            for sandbox in {backend.reader(MODEL)}:
                sandbox.close()

    rules = MediaPolicy(decode_processes=1)
    assert asyncio.run(said(LocalBackend({MODEL: engine}, rules))) == answers[name]
    assert asyncio.run(said(ControllerBackend(ControllerClient(controller.url), rules))) == answers[name]


def test_status_and_metrics(worker, answers):
    assert http.post(worker.url + "/worker_get_status").json()["kinds"] == ["image", "video", "audio"]
    before = counted(worker)
    from_frames(worker.url, SOUND)
    after = counted(worker)
    assert after["tokens"] == before["tokens"] + 1496 and after["media"] == before["media"] + 1


def counted(worker):
    starts = {
        "tokens": f'videollama2:prompt_audio_tokens_total{{model_name="{MODEL}"}} ',
        "media": f'videollama2:media_total{{kind="audio",model_name="{MODEL}"}} ',
    }
    lines = http.get(worker.url + "/metrics").text.splitlines()
    return {
        key: sum(float(line.removeprefix(start)) for line in lines if line.startswith(start))
        for key, start in starts.items()
    }
