"""The judge against a real server on loopback: it answers, limits, hangs, talks nonsense and hangs up."""

import json
import socket
import threading
import time

import pytest

from tests.eval.helpers.judge_server import GOOD, JudgeServer
from tests.eval.helpers.samples import ask
from videollama2.errors import ConfigError, DataError
from videollama2.eval.judging.client import retry_after
from videollama2.eval.judging.judge import OpenAIJudge
from videollama2.eval.judging.rubrics import rubric
from videollama2.eval.samples import Verdict

pytest.importorskip("openai")
QA = rubric("qa", "own")


@pytest.fixture
def server():
    server = JudgeServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def judge(server, **options):
    settings = {"base_url": server.url, "backoff": 0.01, "timeout": 10, "retries": 2, **options}
    return OpenAIJudge("gpt-test", **settings)


def shown(verdicts):
    return [(verdict.pred, verdict.score, verdict.error) for verdict in verdicts]


def test_request_and_verdict(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    one = judge(server, temperature=0.7, top_p=0.95)
    before = [ask(1)]
    (after,) = one.verdicts(before, QA, progress=False)
    assert after == Verdict("yes", 4.0, GOOD)
    _, path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer secret-1"
    assert body == {
        "model": "gpt-test",
        "messages": QA.messages(before[0]),
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 800,
    }
    record = one.describe()
    assert record["kind"] == "openai-compatible" and record["served_models"] == ["gpt-test-0613"]
    assert (record["temperature"], record["endpoint"]) == (0.7, server.url)
    assert "secret-1" not in json.dumps([after.to_json(), record])


def test_azure(server, monkeypatch):
    endpoint = server.url.removesuffix("/v1")
    with pytest.raises(ConfigError, match="set AZURE_OPENAI_API_KEY"):
        OpenAIJudge("my-deployment", azure_endpoint=endpoint, azure_api_version="2024-02-01")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "secret-2")
    with pytest.raises(ConfigError, match="azure_api_version"):
        OpenAIJudge("my-deployment", azure_endpoint=endpoint)
    one = OpenAIJudge("my-deployment", azure_endpoint=endpoint, azure_api_version="2024-02-01")
    assert shown(one.verdicts([ask(1)], QA, progress=False)) == [("yes", 4.0, None)]
    _, path, headers, _ = server.seen[0]
    assert path == "/openai/deployments/my-deployment/chat/completions?api-version=2024-02-01"
    assert headers["api-key"] == "secret-2"
    assert one.describe()["kind"] == "azure"


def test_rate_limit_is_waited_out_as_asked(server):
    server.script = {"slow down": [("status", 429, {"Retry-After": "1"}), GOOD]}
    assert shown(judge(server).verdicts([ask(1, "slow down")], QA, progress=False)) == [("yes", 4.0, None)]
    (first, *_), (second, *_) = server.seen
    assert second - first >= 0.95


def test_rate_limit_without_end_is_counted_not_repeated_for_ever(server):
    server.script = {"slow down": [("status", 429, {"Retry-After": "3600"})]}
    started = time.monotonic()
    (limited, fine) = judge(server, max_wait=0.05).verdicts([ask(1, "slow down"), ask(2)], QA, progress=False)
    assert time.monotonic() - started < 3600
    assert limited.error.startswith("HTTP 429 after 3 attempts")
    assert (limited.pred, limited.score) == (None, None)
    assert fine.error is None
    assert len(server.seen) == 4


def test_server_errors_are_tried_again(server):
    server.script = {"odd": [("status", 500, {}), ("status", 503, {}), GOOD]}
    assert shown(judge(server).verdicts([ask(1, "odd")], QA, progress=False)) == [("yes", 4.0, None)]
    assert len(server.seen) == 3


@pytest.mark.parametrize("step", [("drop",), ("cut",)])
def test_dropped_connections_are_tried_again(server, step):
    server.script = {"odd": [step, GOOD], "bad": [step]}
    fine, lost = judge(server).verdicts([ask(1, "odd"), ask(2, "bad")], QA, progress=False)
    assert fine.error is None
    assert "after 3 attempts" in lost.error


def test_a_server_that_hangs(server):
    server.script = {"odd": [("hang",), GOOD], "bad": [("hang",)]}
    fine, lost = judge(server, timeout=0.4, retries=1).verdicts([ask(1, "odd"), ask(2, "bad")], QA, progress=False)
    assert fine.error is None
    assert lost.error.startswith("APITimeoutError after 2 attempts")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "raw"),
    [
        ("I would rather not say.", "I would rather not say."),
        (("body", b"<html>gateway</html>", "text/html"), None),
        (("body", b'{"half": ', "application/json"), None),
        (("body", b"[]", "application/json"), None),
        (("body", b'{"choices": []}', "application/json"), None),
        (("body", b'{"choices": [{"message": {"content": null}}]}', "application/json"), None),
        (("body", b'{"choices": 3}', "application/json"), None),
        (("body", b'{"choices": [null]}', "application/json"), None),
        (("body", b"\xff\xfe\x00", "application/json"), None),
    ],
)
def test_nonsense_is_a_failure_of_that_row_alone(server, step, raw):
    server.script = {"odd": [step]}
    bad, fine = judge(server, retries=0).verdicts([ask(1, "odd"), ask(2)], QA, progress=False)
    assert bad.error
    assert bad.raw == raw
    assert (bad.pred, bad.score) == (None, None)
    assert fine.error is None


def test_a_refused_request_is_not_repeated(server):
    """A content filter refuses for good."""
    server.script = {"odd": [("status", 400, {})]}
    (bad,) = judge(server).verdicts([ask(1, "odd")], QA, progress=False)
    assert bad.error.startswith("HTTP 400")
    assert len(server.seen) == 1


@pytest.mark.parametrize(("status", "why"), [(401, "refuses the key"), (404, "does not know the model")])
def test_what_every_request_would_meet_stops_at_once(server, status, why):
    server.script = {"": [("status", status, {})]}
    with pytest.raises(ConfigError, match=why):
        judge(server, concurrency=1).verdicts([ask(n) for n in range(50)], QA, progress=False)
    assert len(server.seen) <= 2


def test_a_server_that_is_not_there_is_not_waited_for_by_every_ask():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    one = OpenAIJudge("m", base_url=url, retries=1, backoff=0.01, concurrency=2, timeout=5)
    rows = one.verdicts([ask(n) for n in range(200)], QA, progress=False)
    errors = [each.error for each in rows]
    assert sum(error.startswith("APIConnectionError after 2 attempts") for error in errors) <= 6
    assert sum("in a row got no answer" in error for error in errors) >= 194


@pytest.mark.slow
@pytest.mark.parametrize("step", [("status", 429, {"Retry-After": "0"}), ("status", 503, {}), ("drop",)])
def test_a_server_that_refuses_everybody_is_not_asked_for_every_ask(server, step):
    server.script = {"": [step]}
    rows = judge(server, retries=1, concurrency=2).verdicts([ask(n) for n in range(100)], QA, progress=False)
    assert all(each.error for each in rows)
    assert len(server.seen) <= 2 * (3 + 2)  # two attempts for three rows, and for what was under way then
    server.script = {}
    again = judge(server).verdicts([ask(n) for n in range(100)], QA, progress=False)
    assert not any(each.error for each in again)


@pytest.mark.parametrize("word", ["code", "type"])
def test_a_spent_quota_stops_at_once(server, word):
    server.script = {"": [("status", 429, {}, {"message": "You exceeded your quota", word: "insufficient_quota"})]}
    with pytest.raises(ConfigError, match="the quota is used up"):
        judge(server, concurrency=1).verdicts([ask(n) for n in range(50)], QA, progress=False)
    assert len(server.seen) <= 2


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_the_server_repeats_is_not_kept(server, status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-3")
    server.script = {"": [("status", status, {}, {"message": "Incorrect API key provided: secret-3"})]}
    try:
        said = judge(server, retries=0).verdicts([ask(1)], QA, progress=False)[0].error
    except ConfigError as error:
        said = str(error)
    assert "provided: ***" in said
    assert "secret-3" not in said


def test_requests_run_side_by_side_and_results_keep_their_order(server):
    server.gate = threading.Barrier(4)  # answers only when four are there at once
    server.script = {f"colour {n}?": [f"{{'pred': 'yes', 'score': {n % 6}}}"] for n in range(8)}
    found = judge(server, concurrency=4).verdicts([ask(n) for n in range(8)], QA, progress=False)
    assert [each.score for each in found] == [n % 6 for n in range(8)]
    assert server.most_at_once == 4


def test_cache_answers_the_same_request_and_no_other(server, tmp_path):
    first = judge(server, cache_dir=tmp_path).verdicts([ask(1), ask(2), ask(1)], QA, progress=False)
    assert len(server.seen) == 2  # two equal requests are one
    again = judge(server, cache_dir=tmp_path)
    assert again.verdicts([ask(1), ask(2), ask(1)], QA, progress=False) == first
    assert again.describe()["served_models"] == ["gpt-test-0613"]
    assert len(server.seen) == 2
    judge(server, cache_dir=tmp_path, temperature=0.7).verdicts([ask(1)], QA, progress=False)
    judge(server, cache_dir=tmp_path).verdicts([ask(1, "blue")], QA, progress=False)
    judge(server, cache_dir=tmp_path).verdicts([ask(1)], rubric("msvc_correctness", "own"), progress=False)
    assert len(server.seen) == 5
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]


def test_failures_are_not_cached_and_damage_is_repaired(server, tmp_path):
    server.script = {"odd": ["no idea", "no idea", GOOD]}
    assert judge(server, cache_dir=tmp_path).verdicts([ask(1, "odd")], QA, progress=False)[0].error
    assert not list(tmp_path.rglob("*.json"))
    assert shown(judge(server, cache_dir=tmp_path).verdicts([ask(1, "odd")], QA, progress=False))[0][2] is None
    (stored,) = tmp_path.rglob("*.json")
    for damage in (b'{"key"', b"\xff", b"[]", b'{"key": "other", "raw": "{\'pred\': \'no\', \'score\': 0}"}'):
        stored.write_bytes(damage)
        (repaired,) = judge(server, cache_dir=tmp_path).verdicts([ask(1, "odd")], QA, progress=False)
        assert repaired.pred == "yes"
    assert len(server.seen) == 7


def test_an_unreadable_reply_is_asked_for_once_more(server):
    server.script = {"odd": ["let me see", GOOD], "bad": ["let me see"]}
    fine, bad = judge(server).verdicts([ask(1, "odd"), ask(2, "bad")], QA, progress=False)
    assert (fine.error, fine.score) == (None, 4.0)
    assert bad.error == "unreadable reply: no score" and not bad.unanswered
    assert len(server.seen) == 4


def test_tokens_are_those_that_the_server_counted(server, tmp_path):
    counted = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "details": {"a": 1}}
    server.extra = {"usage": counted}
    server.script = {"odd": ["let me see", GOOD]}
    one = judge(server, cache_dir=tmp_path)
    one.verdicts([ask(1), ask(2, "odd")], QA, progress=False)
    assert one.describe()["usage"] == {"completion_tokens": 21, "prompt_tokens": 300}  # the unreadable one was paid for
    again = judge(server, cache_dir=tmp_path)
    again.verdicts([ask(1), ask(2, "odd")], QA, progress=False)
    assert again.describe()["usage"] == {"completion_tokens": 14, "prompt_tokens": 200}
    assert len(server.seen) == 3


def test_a_judge_that_moved_to_another_address_is_not_asked_again(server, tmp_path):
    first = judge(server, cache_dir=tmp_path).verdicts([ask(1)], QA, progress=False)
    other = judge(server, cache_dir=tmp_path, base_url="http://127.0.0.1:1/v1", retries=0)
    assert other.verdicts([ask(1)], QA, progress=False) == first
    assert len(server.seen) == 1


def test_dry_run_asks_nothing(server, tmp_path):
    judge(server, cache_dir=tmp_path).verdicts([ask(1)], QA, progress=False)
    rows = [ask(1), ask(2), ask(2), ask(3, "é" * 400), ask(4, error="missing media: v.mp4")]
    cost = judge(server, cache_dir=tmp_path).dry_run(rows, QA)
    assert len(server.seen) == 1
    tokens = cost.pop("prompt_tokens_estimate")
    assert cost == {"rows": 5, "skipped": 1, "duplicates": 1, "cached": 1, "calls": 2, "reply_tokens_at_most": 1600}
    assert tokens >= 200  # 400 letters of two bytes alone are that many


def test_rows_without_an_answer_are_not_judged(server):
    (skipped,) = judge(server).verdicts([ask(1, None, error="missing media: v.mp4")], QA, progress=False)
    assert skipped is None
    assert not server.seen
    with pytest.raises(DataError, match="sample 'q1'.*needs output"):
        judge(server).verdicts([ask(1, None)], QA, progress=False)


def test_key_comes_from_the_environment_only():
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        OpenAIJudge("gpt-test")
    with pytest.raises(TypeError):
        OpenAIJudge("gpt-test", api_key="x")


def test_bad_settings():
    with pytest.raises(ConfigError, match="concurrency=0 must be at least 1"):
        OpenAIJudge("m", base_url="http://127.0.0.1:1/v1", concurrency=0)
    with pytest.raises(ConfigError, match="must begin with http"):
        OpenAIJudge("m", base_url="ftp://host/v1")


def test_credentials_in_an_address_are_not_recorded():
    one = OpenAIJudge("m", base_url="http://user:word@127.0.0.1:1/v1?key=abc")
    assert one.describe()["endpoint"] == "http://127.0.0.1:1/v1"


def test_retry_after_in_all_its_forms():
    assert retry_after({"retry-after": "7"}, now=0) == 7
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}, now=0) == 0.25
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, now=40) == 60
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, now=40) == 0
    for nonsense in ({}, {"retry-after": "soon"}, {"retry-after": "nan"}, {"retry-after": "-3"}):
        assert retry_after(nonsense, now=0) is None
