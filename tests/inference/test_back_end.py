"""Another back end is another class: what servers ask of an engine is the protocol and nothing else."""

import httpx

from tests.serve.helpers.chats import live_chat, tiny
from tests.serve.helpers.media import user
from videollama2.errors import QueueFullError
from videollama2.inference.answer import Answer, Channel, Result
from videollama2.inference.back_end import BackEnd, CacheUse
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request
from videollama2.serve.worker.metrics import ServeMetrics


class Parrot:
    """Answers with the question, at once and without a model."""

    max_length, max_batch, max_queue = 512, 4, 2
    load = {"decoding": 0, "prefilling": 0, "waiting": 0}
    caches = CacheUse()

    def __init__(self):
        self.processor, self.closed, self.asked = tiny()[1], False, 0

    def submit(self, messages, media=(), **options):
        request = Request(messages, media, **options)
        self.asked += 1
        if self.asked > 3:
            raise QueueFullError("the parrot is tired")
        prompt = self.processor.prompt(request.messages, **request.prompt_options)
        channel = Channel()
        words = request.messages[-1]["content"]
        for word in words.split(" "):
            channel.send(word + " ")
        channel.finish(Result(words, "stop", prompt_tokens=7, token_ids=(1, 2)))
        return Answer(channel, None, lambda: None, prompt.text)

    def close(self):
        self.closed = True


def test_the_engine_and_others_keep_the_protocol():
    assert isinstance(Parrot(), BackEnd)
    with Engine(*tiny(), max_batch=1, max_length=300, background=False) as engine:
        assert isinstance(engine, BackEnd)
        assert engine.caches == CacheUse()
        engine.submit("what " * 40, max_new_tokens=1).result()
        assert engine.caches.prefix_bytes > 0
    assert not isinstance(object(), BackEnd)


def test_another_back_end_is_served():
    """Over a real socket: plain and streamed answers, refusals, and its end."""
    parrot = Parrot()
    with live_chat(parrot) as (server, _), httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:

        def ask(**fields):
            body = {"model": "tiny", "messages": [user("Who is a good bird?")], **fields}
            return client.post("/v1/chat/completions", json=body)

        reply = ask().json()
        assert reply["choices"][0]["message"]["content"] == "Who is a good bird?"
        assert reply["usage"]["prompt_tokens"] == 7
        streamed = ask(stream=True).text
        assert "data: [DONE]" in streamed and '"good ' in streamed
        assert ask(messages=[user("  ")]).status_code == 400
        assert ask().status_code == 200 and ask().status_code == 429
        parrot.close()
        assert ask().status_code == 503


def test_its_answers_are_counted():
    ended = []
    metrics = ServeMetrics("parrot", dict, ended.append)
    answer = Parrot().submit([user("Who?")])
    metrics.watch(answer)
    assert [result.completion_tokens for result in ended] == [2]
