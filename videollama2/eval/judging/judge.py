"""Defines judges, which read a question, its reference and an answer, and give a verdict.

``OpenAIJudge`` asks a language model at an OpenAI-compatible address or on Azure. ``LocalJudge`` compares texts and
needs no network; the results say which judge was used.

A failure never counts as a verdict: it is recorded, counted and left out of the mean, and the report shows the lower
bound that counts it as wrong.
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from videollama2.commands import hides_bar
from videollama2.errors import ConfigError
from videollama2.eval.judging.cache import ReplyCache, request_key
from videollama2.eval.judging.client import ChatClient, JudgeCallError, JudgeReply
from videollama2.eval.judging.reply import ReplyError, chooses_option, parse_reply
from videollama2.eval.judging.rubrics import Rubric
from videollama2.eval.samples import MAX_SCORE, UNREADABLE_REPLY, Sample, Verdict

ASKED_AT_MOST = 2
"""Largest number of times that a question is asked if replies cannot be read."""


class Judge(Protocol):
    """The interface of a judge."""

    def verdicts(self, samples: Sequence[Sample], rubric: Rubric, progress: bool = True) -> list[Verdict | None]:
        """Return a verdict for each sample, in order, and None for a sample with an ``error`` in place of an answer."""
        ...

    def dry_run(self, samples: Sequence[Sample], rubric: Rubric) -> dict[str, Any]:
        """Return what :meth:`verdicts` would cost, without asking."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what the results record about the judge."""
        ...


class OpenAIJudge:
    """A language model as a judge.

    Args:
        model: name of the model, or of the deployment on Azure.
        base_url, azure_endpoint, azure_api_version, retries, timeout, backoff, max_wait: see :class:`ChatClient`.
        temperature: sampling temperature, or None for the server's default (some models refuse the setting).
            Published scorers use 0.7.
        top_p: nucleus sampling, or None for the server's default. Published scorers use 0.95.
        max_tokens: longest reply. Published scorers use 800.
        concurrency: number of simultaneous requests.
        cache_dir: folder for readable replies, so that a request is never paid for twice; None for no cache.

    Raises:
        ConfigError, MissingDependencyError: see :class:`ChatClient`.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        azure_endpoint: str | None = None,
        azure_api_version: str | None = None,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        max_tokens: int = 800,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 60.0,
        backoff: float = 1.0,
        max_wait: float = 60.0,
        cache_dir: str | Path | None = None,
    ) -> None:
        _check_at_least("concurrency", concurrency, 1)
        _check_at_least("retries", retries, 0)
        _check_at_least("max_tokens", max_tokens, 1)
        self.model, self.temperature, self.top_p, self.max_tokens = model, temperature, top_p, max_tokens
        self.concurrency = concurrency
        self._azure = bool(azure_endpoint)
        self._client = ChatClient(base_url, azure_endpoint, azure_api_version, retries, timeout, backoff, max_wait)
        self._cache = ReplyCache(cache_dir)
        self._served: set[str] = set()
        self._usage: Counter[str] = Counter()
        # After this many unanswered requests in a row the server counts as down, and no further request waits for it.
        self._patience = max(3, concurrency)
        self._unanswered = 0
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """Return the model asked for, the models that the server says it used, the address without credentials, the
        sampling options, and the tokens that the server counted for all replies in use, cached ones included."""
        return {
            "kind": "azure" if self._azure else "openai-compatible",
            "model": self.model,
            "served_models": sorted(self._served),
            "endpoint": self._client.endpoint,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "usage": dict(sorted(self._usage.items())),
        }

    def verdicts(self, samples: Sequence[Sample], rubric: Rubric, progress: bool = True) -> list[Verdict | None]:
        """Judge every sample that has an answer.

        Equal requests are sent once, and a request whose reply cannot be read is sent once more. Order and result do
        not depend on the number of threads.

        Raises:
            ConfigError: the server refuses key, model or address; replies so far are kept in the cache.
            DataError: a sample lacks a field that the rubric needs.
        """
        requests = [None if sample.error else self._request(rubric, sample) for sample in samples]
        keys = [request_key(request) if request else None for request in requests]
        asked = zip(keys, requests, samples, strict=True)
        unique = {key: (request, sample.answer) for key, request, sample in asked if key and request}
        self._unanswered = 0
        found = self._ask_all(unique, rubric, progress)
        return [found[key] if key else None for key in keys]

    def dry_run(self, samples: Sequence[Sample], rubric: Rubric) -> dict[str, Any]:
        """Count requests and tokens without asking.

        The tokens of prompts are an estimate (four bytes per token), those of replies an upper bound.
        """
        requests = [self._request(rubric, sample) for sample in samples if not sample.error]
        unique = {request_key(request): request for request in requests}
        calls = [request for key, request in unique.items() if self._cache.get(key) is None]
        texts = ["".join(message["content"] for message in request["messages"]) for request in calls]
        return {
            "rows": len(samples),
            "skipped": len(samples) - len(requests),
            "duplicates": len(requests) - len(unique),
            "cached": len(unique) - len(calls),
            "calls": len(calls),
            "prompt_tokens_estimate": sum(math.ceil(len(text.encode()) / 4) for text in texts),
            "reply_tokens_at_most": len(calls) * self.max_tokens,
        }

    def _request(self, rubric: Rubric, sample: Sample) -> dict[str, Any]:
        request = {"model": self.model, "messages": rubric.messages(sample), "max_tokens": self.max_tokens}
        sampling = {"temperature": self.temperature, "top_p": self.top_p}
        return request | {name: value for name, value in sampling.items() if value is not None}

    def _ask_all(
        self, unique: Mapping[str, tuple[Mapping[str, Any], Any]], rubric: Rubric, progress: bool
    ) -> dict[str, Verdict]:
        from tqdm import tqdm

        found: dict[str, Verdict] = {}
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        # What one request meets, such as a refused key, the next would meet too. Threads of the pool look at this
        # before they ask, because they may take several questions before this thread has seen the first error.
        is_over = threading.Event()

        def ask(key: str, request: Mapping[str, Any], answer: Any) -> Verdict:
            if is_over.is_set():
                return Verdict(error="not asked: another request has ended the judging")
            try:
                return self._ask(key, request, rubric, answer)
            except BaseException:
                is_over.set()
                raise

        try:
            futures = {pool.submit(ask, key, request, answer): key for key, (request, answer) in unique.items()}
            for future in tqdm(
                as_completed(futures), "judge", len(futures), disable=hides_bar(progress), unit=" answers"
            ):
                found[futures[future]] = future.result()
        finally:
            # After an error or Ctrl-C, no further request is sent.
            pool.shutdown(wait=True, cancel_futures=True)
        return found

    def _ask(self, key: str, request: Mapping[str, Any], rubric: Rubric, answer: Any) -> Verdict:
        stored = self._cache.get(key)
        if stored is not None:
            self._count(stored)
            return _read(stored, rubric, answer)
        verdict = Verdict()
        for _ in range(ASKED_AT_MOST):
            with self._lock:
                if self._unanswered >= self._patience:
                    return Verdict(error=f"not asked: {self._unanswered} requests in a row got no answer")
            try:
                reply = self._client.complete(request)
            except JudgeCallError as error:
                self._note(error.unreachable)
                return Verdict(error=str(error))
            self._note(False)
            self._count(reply)
            verdict = _read(reply, rubric, answer)
            if verdict.error is None:  # an unreadable reply is not cached, and another may be readable
                self._cache.put(key, reply)
                break
        return verdict

    def _note(self, unanswered: bool) -> None:
        with self._lock:
            self._unanswered = self._unanswered + 1 if unanswered else 0

    def _count(self, reply: JudgeReply) -> None:
        with self._lock:
            self._served.add(reply.model)
            self._usage.update(reply.usage)


def _read(reply: JudgeReply, rubric: Rubric, answer: Any) -> Verdict:
    if rubric.chooses:
        return Verdict("yes" if chooses_option(reply.raw, str(answer)) else "no", None, reply.raw)
    try:
        pred, score = parse_reply(reply.raw, rubric.wants_pred)
    except ReplyError as error:
        return Verdict(raw=reply.raw, error=f"{UNREADABLE_REPLY}: {error}")
    return Verdict(pred, score, reply.raw)


class LocalJudge:
    """A judge that compares texts, without a network.

    Texts that are equal, also after normalisation, give yes and 5; others give no and 0.
    """

    def describe(self) -> dict[str, Any]:
        return {"kind": "local", "model": "exact or normalised match"}

    def dry_run(self, samples: Sequence[Sample], rubric: Rubric) -> dict[str, Any]:
        """Return the same counts as other judges; there are no calls."""
        skipped = sum(bool(sample.error) for sample in samples)
        return {
            "rows": len(samples),
            "skipped": skipped,
            "duplicates": 0,
            "cached": 0,
            "calls": 0,
            "prompt_tokens_estimate": 0,
            "reply_tokens_at_most": 0,
        }

    def verdicts(self, samples: Sequence[Sample], rubric: Rubric, progress: bool = True) -> list[Verdict | None]:
        """Judge every sample that has an answer."""
        return [None if sample.error else self._verdict(sample, rubric) for sample in samples]

    def _verdict(self, sample: Sample, rubric: Rubric) -> Verdict:
        rubric.messages(sample)  # raises the same errors for incomplete samples as the other judge
        references = [sample.answer] if isinstance(sample.answer, str) else list(sample.answer)
        outputs = [sample.output] if isinstance(sample.output, str) else list(sample.output or ())
        how = "no match"
        if all(output in references for output in outputs):
            how = "exact match"
        elif {*map(normalise, outputs)} <= {*map(normalise, references)}:
            how = "normalised match"
        right = how != "no match"
        pred = ("yes" if right else "no") if rubric.wants_pred else None
        return Verdict(pred, None if rubric.chooses else float(MAX_SCORE if right else 0), how)


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def normalise(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, with small numbers as digits and single spaces."""
    words: list[str] = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(str(_DIGITS.get(word, word)) for word in words if word not in ("a", "an", "the"))


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"judge: {name}={value} must be at least {least}")
