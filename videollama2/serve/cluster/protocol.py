"""What the parts say to each other: bodies of the controller's and the worker's routes, and the two streams.

Names are the published ones (FastChat's). ``\\0``-streams carry JSON objects with the whole text so far, each followed
by a zero byte; server-sent events carry OpenAI's chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from videollama2.serve.web.errors import ApiError

HEART_BEAT_S = 15.0
EXPIRY_S = 30.0
"""Published: a worker reports every 15 s, and after 30 s of silence it is gone."""

PROTOCOL_VERSION = 1

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
WorkerName = Annotated[str, StringConstraints(min_length=8, max_length=256, pattern=r"^https?://[!-~]+$")]
Speed = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Queue = Annotated[int, Field(ge=0, le=10**6)]


class _Body(BaseModel):
    # Other implementations send more; what is not known is not used.
    model_config = ConfigDict(extra="ignore")


class WorkerStatus(_Body):
    """What a worker says of itself.

    ``speed``: tokens per second, or any measure that all workers share. ``num_frames``: looked at where a video names
    no number.
    """

    model_names: list[ModelName] = Field(min_length=1, max_length=64)
    speed: Speed = 1.0
    queue_length: Queue = 0
    num_frames: int | None = Field(None, ge=1, le=1 << 20)


class RegisterWorker(_Body):
    """``/register_worker``. ``worker_name`` is the worker's address."""

    worker_name: WorkerName
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None
    multimodal: bool = True
    protocol_version: int = PROTOCOL_VERSION


class HeartBeat(_Body):
    """``/receive_heart_beat``. ``speed``: where it has changed or not, see :class:`WorkerStatus`."""

    worker_name: WorkerName
    queue_length: Queue = 0
    speed: Speed | None = None


class WorkerGone(_Body):
    """``/unregister_worker``: a worker that shuts down says so."""

    worker_name: WorkerName


class ModelAsked(_Body):
    """``/get_worker_address``. ``exclude``: addresses where it was tried. ``affinity``: see
    :func:`videollama2.serve.cluster.registry.affinity_of`."""

    model: Annotated[str, StringConstraints(max_length=512)]
    exclude: list[Annotated[str, StringConstraints(max_length=256)]] = Field(default=[], max_length=64)
    affinity: Annotated[str, StringConstraints(max_length=64)] | None = None


class GenerateStream(_Body):
    """``/worker_generate_stream``: a question with its media, base64 or ``data:`` URLs, in the prompt's order.

    ``echo``: the text begins with the prompt, as published.
    """

    model: Annotated[str, StringConstraints(max_length=512)] = ""
    prompt: str
    images: list[str] = Field(default=[], max_length=64)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    max_new_tokens: int = Field(256, ge=1, le=10**6)
    stop: str | list[str] | None = None
    echo: bool = True


# ------------------------------------------------------------------------------------------------------------ streams


def frame(content: dict[str, Any]) -> bytes:
    """One object of a ``\\0``-stream."""
    return json.dumps(content).encode("ascii") + b"\0"


def error_frame(error: ApiError, text: str = "") -> bytes:
    """The last object of a ``\\0``-stream that failed."""
    return frame({"text": text or error.message, "error_code": error.internal_code, "message": error.message})


class Splitter:
    """Cuts a byte stream at a separator, whatever pieces it comes in.

    Args:
        limit: of one part.
    """

    def __init__(self, separator: bytes, limit: int = 64 << 20) -> None:
        self._separator, self._limit = separator, limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Parts that are complete now.

        Raises:
            ApiError: a part is longer than the limit.
        """
        # Only the new bytes, and what could be a separator's beginning before them, are searched.
        start = max(0, len(self._rest) - len(self._separator) + 1)
        self._rest += data
        begin = 0
        while (end := self._rest.find(self._separator, max(start, begin))) >= 0:
            yield bytes(self._rest[begin:end])
            begin = end + len(self._separator)
        del self._rest[:begin]
        if len(self._rest) > self._limit:
            raise ApiError(502, "the worker sent a broken answer", type="server_error", code="worker_failed")

    @property
    def rest(self) -> bytes:
        """What has not been ended."""
        return bytes(self._rest)


def event_data(block: bytes) -> bytes | None:
    """The data of one server-sent event; None for a comment."""
    lines = [line[5:].strip() for line in block.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


DONE = b"[DONE]"
