"""Bodies with long strings: what is read of them is what JSON says, in steps that let other work run in between."""

import asyncio
import base64
import gc
import itertools
import json
import random
import sys
from time import thread_time

import pytest

from videollama2.serve import long_text
from videollama2.serve.api.messages import kinds_asked
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.api.responses import ResponsesRequest
from videollama2.serve.cluster.affinity import affinity_of_chat
from videollama2.serve.legacy import GenerateRequest, chat_request
from videollama2.serve.long_text import LONG_BYTES, LongText, beginning, dumped, pieces, with_head
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.urls import parse_data
from videollama2.serve.web.body import MAX_TEXT_BYTES, BodyScanner, parse
from videollama2.serve.web.errors import ApiError
from videollama2.serve.web.guard import _Body

ODD = ["a", "\\", '"', "\n", "ä", "€", "😀", "\u0007", "[", ",", "}", "/", "u", "d83d", "0"]


def odd_text(chance, count):
    return "".join(chance.choice(ODD) for _ in range(count))


def scanned(body, sizes):
    scanner, at = BodyScanner(), 0
    while at < len(body):
        size = next(sizes)
        scanner.feed(body[at : at + size])
        at += size
    return scanner


def read(body):
    return parse(body, scanned(body, iter(lambda: 50_000, 0)).long_spans)


def plain(value):
    """The value with its long texts as strings."""
    if isinstance(value, LongText):
        return "".join(pieces(value))
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("is_ascii", [True, False])
def test_long_strings_are_found_whatever_pieces_a_body_comes_in(is_ascii):
    chance = random.Random(3)
    long = [
        odd_text(chance, 40_000) + "x" * 30_000,
        "\\" * 70_001,
        '"' * 80_000,
        "y" * LONG_BYTES,
        "y" * (LONG_BYTES + 1),
    ]
    value = {"messages": [{"url": text, "data": [text[:100], {"url": odd_text(chance, 300)}]} for text in long]}
    value |= {"images": [long[0], "", "b"], "text": long[0], "n": [1, {"": 2.5}]}
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    spans = scanned(body, iter(lambda: len(body), 0)).long_spans
    assert len(spans) == 6, "the texts of media and one text; a string of exactly LONG_BYTES is not long"
    assert all(body[start - 1 : start] == body[end : end + 1] == b'"' for start, end in spans)
    for sizes, some in ((range(1, 90), body[:200_000]), (range(60_000, 70_000), body)):
        found = scanned(some, map(chance.choice, itertools.repeat(sizes))).long_spans
        assert found == [span for span in spans if span[1] < len(some)]
    parsed = parse(body, spans)
    assert plain(parsed) == value
    kept = [message["url"] for message in parsed["messages"]] + parsed["images"] + [parsed["text"]]
    assert [isinstance(text, LongText) for text in kept] == [True, True, True, False, True, True, False, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("piece", [16, 17, 18, 19, 23])
def test_the_pieces_of_a_text_are_whole_characters(piece, monkeypatch):
    """Neither a character of several bytes nor an escape sequence, nor a pair of them, is cut."""
    monkeypatch.setattr(long_text, "PIECE", piece)
    chance = random.Random(piece)
    for is_ascii in (True, False):
        for _ in range(60):
            text = odd_text(chance, 60)
            body = json.dumps(text, ensure_ascii=is_ascii).encode()
            long = LongText(body, 1, len(body) - 1)
            assert "".join(long.pieces()) == text
            assert beginning(long, 7) == text[:7]
            headed = with_head(with_head(long, 5, "head"), 2, "new ")
            assert "".join(pieces(headed)) == "new ad" + text[5:]
            assert "".join(pieces(headed, 9)) == ("new ad" + text[5:])[9:]
            value = {"a": [text[:3], long, headed], "b": long}
            assert json.loads(dumped(value)) == {"a": [text[:3], text, "new ad" + text[5:]], "b": text}


def test_texts_that_are_no_media_are_bounded_together():
    half = "a" * (MAX_TEXT_BYTES // 2)
    assert read(json.dumps({"messages": [{"content": half}]}).encode()) == {"messages": [{"content": half}]}
    medium = {"messages": [{"content": half, "url": half * 3}]}
    assert plain(read(json.dumps(medium).encode())) == medium, "media do not count"
    refused = {
        "two texts": {"messages": [{"content": half}, {"content": half}]},
        "a field of that name elsewhere": {"url": half * 2},
        "many short texts": ["a" * 60_000] * 40,
        "a name": {"a" * 70_000: 1},
    }
    for name, value in refused.items():
        with pytest.raises(ApiError) as raised:
            read(json.dumps(value).encode())
        assert raised.value.status == 413, name


@pytest.mark.parametrize("inner", [b"\xff" * 70_000, b"a\n" * 40_000, b"\\x" * 40_000, b"\\ud8" * 20_000])
def test_long_strings_that_are_no_json(inner):
    with pytest.raises(ApiError) as raised:
        read(b'{"text": "' + inner + b'"}')
    assert raised.value.code == "invalid_json"
    medium = read(b'{"images": ["data:image/png;base64,' + inner + b'"]}')["images"][0]
    with pytest.raises(RefusedMediaError, match="not valid base64|must be data"):
        parse_data(medium, "image", 1 << 20, 8)


def test_slashes_and_line_breaks_of_base64_may_be_escaped():
    """As PHP and MIME write them."""
    content = random.Random(1).randbytes(120_000)
    encoded = base64.encodebytes(content).decode()
    body = json.dumps({"messages": [{"url": "data:video/mp4;base64," + encoded}]}).replace("/", "\\/").encode()
    url = read(body)["messages"][0]["url"]
    assert isinstance(url, LongText) and parse_data(url, "video", 1 << 20, 8) == content


# ------------------------------------------------------------------------------------------------------- no long steps


def longest_step(work, *args):
    """Return the result of a call and the processor time of its longest step between two calls or returns.

    Other threads can run only between such steps.
    """
    gc.collect()
    gc.disable()  # a server keeps what it has loaded out of collections
    longest, last = 0.0, thread_time()

    def look(frame, event, called):
        nonlocal longest, last
        now = thread_time()
        longest, last = max(longest, now - last), now

    sys.setprofile(look)
    try:
        return work(*args), longest
    finally:
        sys.setprofile(None)
        gc.enable()


class Unbounded:
    """Stands for the guard that counts the bytes of all bodies."""

    def hold(self, count, size):
        pass


def arrived(body):
    """Return a parsed body, read as a server reads it."""
    sent = iter(range(0, len(body), 1 << 18))

    async def receive():
        at = next(sent)
        return {"type": "http.request", "body": body[at : at + (1 << 18)], "more_body": at + (1 << 18) < len(body)}

    found = []  # asyncio.run() makes a text of what it returns

    async def take():
        reader = _Body(receive, Unbounded(), is_empty=False)
        await reader.read(60.0)
        found.append(parse((await reader.receive())["body"], reader.long_spans))

    asyncio.run(take())
    return found[0]


@pytest.mark.slow
def test_no_step_with_a_long_medium_is_long(longest_step_s):
    """Parsing or decoding all of it in one call would take several times as long."""
    encoded = base64.b64encode(random.Random(2).randbytes(16 << 20)).decode()
    url = "data:video/mp4;base64," + encoded
    question = {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}
    body = json.dumps({"model": "m", "messages": [question]}).encode()
    old = json.dumps({"prompt": "What?", "images": [encoded]}).encode()
    item = {"role": "user", "content": [{"type": "input_video", "video_url": url}]}
    new = json.dumps({"model": "m", "input": [item]}).encode()

    def work():
        sent = arrived(body)
        request = ChatRequest.model_validate(sent)
        assert kinds_asked(request) == ["video"] and affinity_of_chat(sent)
        assert len(parse_data(request.messages[0].content[0].video_url.url, "video", 1 << 30, 8)) == 16 << 20
        assert ResponsesRequest.model_validate(arrived(new)).as_chat().messages[0].content[0].type == "video_url"
        with pytest.raises(ApiError):
            chat_request(GenerateRequest.model_validate(arrived(old)), "m")  # these bytes are no medium
        return len(dumped(sent))

    size, longest = longest_step(work)
    assert size >= len(body) - 100
    assert longest < longest_step_s
