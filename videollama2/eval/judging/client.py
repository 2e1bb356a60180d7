"""Sends chat requests to an OpenAI-compatible server or Azure, with bounded retries."""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from videollama2.errors import ConfigError, MissingDependencyError

_LOOPBACK_KEY = "none"  # for a local server without keys, since the openai package needs a value
_RETRY_STATUS = frozenset({408, 409, 425, 429})  # besides all 5xx
_FATAL_STATUS = {401: "refuses the key", 403: "forbids the request", 404: "does not know the model or the address"}


_SPENT = "insufficient_quota"  # OpenAI's code for a used-up quota; it comes with HTTP 429, but waiting does not help


class JudgeCallError(Exception):
    """A request has finally failed.

    ``unreachable`` is true if all attempts met errors that any request would meet (no connection, rate limit, HTTP
    5xx).
    """

    def __init__(self, message: str, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class JudgeReply(NamedTuple):
    """The text of a reply, the model that the server says it used, and the tokens that the server counted.

    ``usage`` has ``prompt_tokens`` and ``completion_tokens``, or is empty if the server counts none.
    """

    raw: str
    model: str
    usage: dict[str, int]


class ChatClient:
    """A client for chat requests, which several threads may use at once.

    The key is read from the environment: ``OPENAI_API_KEY``, or ``AZURE_OPENAI_API_KEY`` for Azure.

    Args:
        base_url: address of an OpenAI-compatible server, or None for OpenAI itself.
        azure_endpoint, azure_api_version: use Azure; model names are then names of deployments.
        retries: number of further attempts after the first.
        timeout: seconds for one attempt.
        backoff: seconds before the first retry; the time doubles with each retry.
        max_wait: longest single wait in seconds, even if the server's Retry-After asks for more.

    Raises:
        MissingDependencyError: the openai package is not installed.
        ConfigError: there is no key in the environment, or settings contradict each other.
    """

    def __init__(
        self,
        base_url: str | None = None,
        azure_endpoint: str | None = None,
        azure_api_version: str | None = None,
        retries: int = 5,
        timeout: float = 60.0,
        backoff: float = 1.0,
        max_wait: float = 60.0,
    ) -> None:
        self._openai = _import_openai()
        self.retries, self.backoff, self.max_wait = retries, backoff, max_wait
        self.endpoint = _without_credentials(azure_endpoint or base_url or "https://api.openai.com/v1")
        self._resume_at = 0.0  # a time.monotonic() until which all threads wait if the server asks one of them to
        self._lock = threading.Lock()
        options: dict[str, Any] = {"timeout": timeout, "max_retries": 0}  # this class does the retries
        if azure_endpoint:
            if base_url or not azure_api_version:
                raise ConfigError("a judge on Azure needs azure_endpoint and azure_api_version, and no base_url")
            self._secret = _key("AZURE_OPENAI_API_KEY")
            options |= {"api_key": self._secret, "api_version": azure_api_version}
            self._client = self._openai.AzureOpenAI(azure_endpoint=azure_endpoint, **options)
            return
        self._secret = _key("OPENAI_API_KEY", _LOOPBACK_KEY if base_url else None)
        options |= {"api_key": self._secret, "base_url": base_url or "https://api.openai.com/v1"}
        self._client = self._openai.OpenAI(**options)

    def complete(self, request: Mapping[str, Any]) -> JudgeReply:
        """Send one request, which has the arguments of ``chat.completions.create``.

        Raises:
            JudgeCallError: every attempt failed, or the server refused this one request.
            ConfigError: the server refuses all requests, because of the key, the model or the address.
        """
        waits = random.Random(repr(request))  # waits differ between threads, but are the same in every run
        for attempt in range(self.retries + 1):
            self._hold_back()
            try:
                return self._once(request)
            except self._openai.APIError as error:
                self._give_up_if_pointless(error)
                if attempt == self.retries:
                    raise self._failure(error, attempt + 1) from error
                self._postpone(error, self.backoff * 2**attempt * waits.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _once(self, request: Mapping[str, Any]) -> JudgeReply:
        response = self._client.chat.completions.with_raw_response.create(**request)
        # A server may send anything with status 200, and the openai package does not check what it parses.
        try:
            body = json.loads(response.http_response.content)
            text = body["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise JudgeCallError("the reply is not a chat completion") from error
        if not isinstance(text, str):
            raise JudgeCallError("the reply holds no text")
        return JudgeReply(text, str(body.get("model") or request["model"]), _usage(body.get("usage")))

    def _give_up_if_pointless(self, error: Exception) -> None:
        """Raise an error now if another attempt cannot help."""
        status = getattr(error, "status_code", None)
        if status in _FATAL_STATUS:
            why = f"{_FATAL_STATUS[status]} (HTTP {status}): {self._said(error)}"
            raise ConfigError(f"judge {self.endpoint} {why}") from error
        if _SPENT in (getattr(error, "code", None), getattr(error, "type", None)):
            raise ConfigError(f"judge {self.endpoint}: the quota is used up: {self._said(error)}") from error
        if status is not None and status not in _RETRY_STATUS and not 500 <= status < 600:
            raise JudgeCallError(f"HTTP {status}: {self._said(error)}") from error

    def _failure(self, error: Exception, attempts: int) -> JudgeCallError:
        status = getattr(error, "status_code", None)
        cause = f"HTTP {status}" if status else type(error).__name__
        tried = f"{attempts} attempt{'s' * (attempts > 1)}"
        return JudgeCallError(f"{cause} after {tried}: {self._said(error)}", unreachable=True)

    def _said(self, error: Exception) -> str:
        """Return an error's text, which is stored with the answer, without the key, which a server may repeat in it."""
        return str(error) if self._secret == _LOOPBACK_KEY else str(error).replace(self._secret, "***")

    def _postpone(self, error: Exception, backoff: float) -> None:
        asked = retry_after(getattr(getattr(error, "response", None), "headers", {}), time.time())
        wait = min(backoff if asked is None else asked, self.max_wait)
        if asked is None:
            time.sleep(wait)
            return
        with self._lock:
            self._resume_at = max(self._resume_at, time.monotonic() + wait)

    def _hold_back(self) -> None:
        with self._lock:
            wait = self._resume_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def _usage(counted: Any) -> dict[str, int]:
    """Return the two counts for which servers charge, if they are numbers."""
    numbers = counted if isinstance(counted, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    return {name: numbers[name] for name in names if isinstance(numbers.get(name), int)}


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that ``Retry-After`` (seconds or an HTTP date) or ``retry-after-ms`` asks to wait, or None.

    ``now`` is the current time in seconds since the epoch.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * scale
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except ValueError:
        return None


def _import_openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingDependencyError.of("a judge behind an API needs the package openai", "[eval]") from error
    return openai


def _key(variable: str, default: str | None = None) -> str:
    key = os.environ.get(variable, "").strip() or default
    if not key:
        raise ConfigError(f"the judge's key is read from the environment: set {variable}")
    return key


def _without_credentials(url: str) -> str:
    """Return a URL without user, password and query, for results and messages."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"judge address {url!r}: must begin with http:// or https:// and name a host")
    return urlunsplit((parts.scheme, parts.netloc.rsplit("@", 1)[-1], parts.path.rstrip("/"), "", ""))
