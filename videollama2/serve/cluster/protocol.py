"""Defines the bodies of the controller's routes, which workers, controllers and clients exchange.

The field names are the published ones (FastChat's).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from videollama2.constants import CONTROLLER_HEART_BEAT_EXPIRATION, WORKER_HEART_BEAT_INTERVAL

HEART_BEAT_S, EXPIRY_S = float(WORKER_HEART_BEAT_INTERVAL), float(CONTROLLER_HEART_BEAT_EXPIRATION)

PROTOCOL_VERSION = 1

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
WorkerName = Annotated[str, StringConstraints(min_length=8, max_length=256, pattern=r"^https?://[!-~]+$")]
Speed = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Queue = Annotated[int, Field(ge=0, le=10**6)]


class _ClusterBody(BaseModel):
    # Other implementations send additional fields, which are ignored.
    model_config = ConfigDict(extra="ignore")


class WorkerStatus(_ClusterBody):
    """The status of a worker.

    ``speed`` is in tokens per second, or any other unit that all workers share. ``num_frames`` is the number of frames
    used for videos without an explicit number. ``max_model_len`` limits the tokens of prompt and answer together.
    ``kinds`` are the kinds of media that the models take, see :data:`videollama2.media.kinds.KINDS`; None is unknown.
    """

    model_names: list[ModelName] = Field(min_length=1, max_length=64)
    speed: Speed = 1.0
    queue_length: Queue = 0
    num_frames: int | None = Field(None, ge=1, le=1 << 20)
    max_model_len: int | None = Field(None, ge=1, le=1 << 40)
    kinds: list[Annotated[str, StringConstraints(max_length=32)]] | None = Field(None, max_length=16)


class RegisterWorker(_ClusterBody):
    """Body of ``/register_worker``. ``worker_name`` is the worker's address."""

    worker_name: WorkerName
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None
    multimodal: bool = True
    protocol_version: int = PROTOCOL_VERSION


class HeartBeat(_ClusterBody):
    """Body of ``/receive_heart_beat``. ``speed`` is sent whether or not it has changed, see :class:`WorkerStatus`."""

    worker_name: WorkerName
    queue_length: Queue = 0
    speed: Speed | None = None


class WorkerGone(_ClusterBody):
    """Body of ``/unregister_worker``, sent by a worker that shuts down."""

    worker_name: WorkerName


class ModelAsked(_ClusterBody):
    """Body of ``/get_worker_address``. ``exclude`` lists addresses that have been tried. For ``affinity`` see
    :func:`videollama2.serve.cluster.affinity.affinity_of`."""

    model: Annotated[str, StringConstraints(max_length=512)]
    exclude: list[Annotated[str, StringConstraints(max_length=256)]] = Field(default=[], max_length=64)
    affinity: Annotated[str, StringConstraints(max_length=64)] | None = None
