"""Decodes clients' media in separate processes, which may crash, hang or run out of memory without harm.

A few processes (:mod:`~videollama2.serve.untrusted_media.child`) are reused for many jobs. Each belongs to one thread,
which sends it jobs and reads the results. A process that fails, or has served its number of jobs, is replaced. Frames
are returned in the size that the model takes, and sounds as clips at its sampling rate, so that little data has to be
transferred and cached.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from videollama2.constants import NUM_FRAMES
from videollama2.errors import MediaError
from videollama2.inference.lru import LruStore
from videollama2.media.audio import ClipRules, Sound, SoundSampling
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, IMAGE
from videollama2.media.pixels import FrameResize
from videollama2.serve.untrusted_media.errors import RefusedMediaError, decoding_refusal
from videollama2.serve.untrusted_media.job import Job, job_key
from videollama2.serve.untrusted_media.process import Child, ChildError, ChildLimits
from videollama2.serve.untrusted_media.replies import Decoded, Frames, InvalidReplyError, frames_of, size_of, sound_of

EncodedSource = bytes | Path | Sequence[bytes]
"""An encoded image, video or sound, its path, or a list of encoded frames."""

JOBS_PER_PROCESS = 256
"""Jobs after which a process is replaced, so that leaked memory or anything a client has planted does not stay."""

CACHE_BYTES = 256 << 20

DecodedMedium = Decoded | Sound

_log = logging.getLogger(__name__)


class Sandbox:
    """Decodes clients' media in sandboxed processes.

    Args:
        policy: ``max_bytes``, ``max_pixels``, ``max_frames``, ``max_duration_s``, ``decode_timeout_s``,
            ``decode_memory_bytes``, ``decode_processes`` of :class:`videollama2.serve.settings.MediaPolicy`.
        resize: resizing applied to frames in the decoding process; None keeps the size they have in the file.
        num_frames: number of frames that the model takes, used if a request does not give one.
        rules: rules for cutting sounds into clips; None takes those of the published models.
        jobs_per_process: see :data:`JOBS_PER_PROCESS`.
        cache_bytes: bytes of decoded media to keep for further questions about the same medium.
    """

    def __init__(
        self,
        policy: Any,
        resize: FrameResize | None = None,
        *,
        num_frames: int = NUM_FRAMES,
        rules: ClipRules | None = None,
        jobs_per_process: int = JOBS_PER_PROCESS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.policy, self.resize, self.num_frames, self.rules = policy, resize, num_frames, rules or ClipRules()
        self.started = 0
        """Number of processes started so far."""
        self.cache: LruStore[bytes, DecodedMedium] = LruStore(cache_bytes, size_of)
        """Decoded media by a hash of what they were decoded from."""
        self._limits = ChildLimits.of(policy, jobs_per_process)
        self._threads = ThreadPoolExecutor(policy.decode_processes, thread_name_prefix="videollama2-sandbox")
        # Each thread of the pool has a process of its own, so that a job never waits for another one's process.
        self._own = threading.local()
        self._children: set[Child] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._flights: dict[bytes, _Flight] = {}

    @classmethod
    def of(cls, policy: Any, processor: Any, **options: Any) -> Sandbox:
        """Return a sandbox for a model.

        Frames are resized in the way its ``processor`` resizes them first; sounds are cut by the rules of the model.
        """
        config = processor.model_config
        resize = processor.first_resize() if config.sees else None
        rules = ClipRules.of(config.audio_config) if config.hears else None
        return cls(policy, resize, num_frames=config.num_frames, rules=rules, **options)

    async def read(self, kind: str, source: EncodedSource, options: Mapping[str, Any] | None = None) -> Frames:
        """Return the frames of one medium; see :meth:`read_timed`."""
        return (await self.read_timed(kind, source, options)).frames

    async def read_timed(self, kind: str, source: EncodedSource, options: Mapping[str, Any] | None = None) -> Decoded:
        """Return the frames of one medium with their times. The arrays are shared and must not be written to.

        Args:
            kind: ``image`` or ``video``.
            source: the encoded bytes, a list of encoded video frames, or a path that the caller trusts.
            options: the fields of :class:`~videollama2.media.frames.FrameSampling` that the client gave for a video.

        Raises:
            RefusedMediaError: the medium cannot be decoded, or not within the limits. Cancelling ends the work.
        """
        resize = None if self.resize is None else asdict(self.resize)
        header = {"kind": kind, "sampling": self._sampling(kind, options or {}), "resize": resize}
        found = await self._result(header, source)
        assert isinstance(found, Decoded)
        return found

    async def hear(self, source: EncodedSource, options: Mapping[str, Any] | None = None) -> Sound:
        """Return the clip of a sound that a model hears. Its wave is shared and must not be written to.

        Args:
            source: as for :meth:`read_timed`; a list of encoded frames is a silent video.
            options: the fields of :class:`~videollama2.media.audio.SoundSampling` that the client gave, and
                ``of_video``: whether this is the sound of a video, see :mod:`videollama2.media.audio`.

        Raises:
            RefusedMediaError: as for :meth:`read_timed`.
        """
        given = dict(options or {})
        of_video = bool(given.pop("of_video", False))
        sampling = _accepted(SoundSampling, given)
        header = {"kind": AUDIO, "sampling": asdict(sampling), "of_video": of_video, "rules": asdict(self.rules)}
        found = await self._result(header, source)
        assert isinstance(found, Sound)
        return found

    async def _result(self, asked: dict[str, Any], source: EncodedSource) -> DecodedMedium:
        """Return the result of a job, from the cache if it is there."""
        header = {
            **asked,
            "is_list": not isinstance(source, (bytes, Path)),
            "cpu_seconds": self.policy.decode_timeout_s,
        }
        # Reading and hashing of up to hundreds of megabytes stay off the event loop.
        blobs = await asyncio.to_thread(self._blobs, asked["kind"], source)
        key = await asyncio.to_thread(job_key, header, blobs)
        found = self.cache.get(key)
        return await self._share(key, header, blobs) if found is None else found

    def close(self) -> None:
        """End the processes; jobs in progress fail."""
        with self._lock:
            self._closed = True
            children = list(self._children)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()
        self._threads.shutdown(wait=True)
        for child in children:
            child.end()

    async def start(self) -> None:
        """Start the processes now rather than with the first jobs.

        Raises:
            RefusedMediaError: the processes cannot be started.
        """
        loop, barrier = asyncio.get_running_loop(), threading.Barrier(self.policy.decode_processes)

        def begin() -> None:
            barrier.wait()  # so that each thread starts its own process
            self._child()

        await asyncio.gather(*(loop.run_in_executor(self._threads, begin) for _ in range(self.policy.decode_processes)))

    # ---------------------------------------------------------------------------------------------- checks of a request

    def _sampling(self, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a :class:`FrameSampling` within the policy; an image has none."""
        if kind == IMAGE:
            if options:
                raise RefusedMediaError(f"an image has no {', '.join(sorted(options))}")
            return {}
        sampling = _accepted(lambda **given: FrameSampling(**given).for_model(self.num_frames), options)
        if (sampling.count or 0) > self.policy.max_frames:
            raise RefusedMediaError(f"num_frames {sampling.count} is more than the maximum of {self.policy.max_frames}")
        return asdict(replace(sampling, max_frames=min(sampling.max_frames, self.policy.max_frames)))

    def _blobs(self, kind: str, source: EncodedSource) -> list[Any]:
        if isinstance(source, Path):
            blobs: list[Any] = [_read_file(source, self.policy.max_bytes)]
        elif isinstance(source, bytes):
            blobs = [source]
        else:
            blobs = list(source)
        if not blobs or not all(blobs):
            raise RefusedMediaError(f"the {kind} is empty")
        if len(blobs) > self.policy.max_frames:
            raise RefusedMediaError(f"{len(blobs)} frames are more than the maximum of {self.policy.max_frames}")
        if sum(map(len, blobs)) > self.policy.max_bytes:
            raise RefusedMediaError(f"the {kind} is larger than {self.policy.max_bytes} bytes", "media_too_large", 413)
        return blobs

    # ---------------------------------------------------------------------------------------- requests that share a job

    async def _share(self, key: bytes, header: dict[str, Any], blobs: list[Any]) -> DecodedMedium:
        """Decode once for all concurrent requests for the same medium, and stop when the last of them is cancelled."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._decode(key, header, blobs)))
            flight.task.add_done_callback(lambda _: self._flights.pop(key, None))
        # The task belongs to all its waiting requests: shield() keeps it running when one of them is cancelled.
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._flights.pop(key, None)
                flight.task.cancel()

    async def _decode(self, key: bytes, header: dict[str, Any], blobs: list[Any]) -> DecodedMedium:
        job = Job(header, blobs)
        try:
            decoded = await asyncio.get_running_loop().run_in_executor(self._threads, self._run, job)
        except asyncio.CancelledError:
            # The thread cannot be cancelled. It is blocked on the process, so the process is ended, and the thread with
            # an error.
            job.abandon()
            raise
        except RuntimeError as error:  # the pool is shut down
            raise RefusedMediaError(
                "this server is shutting down", "decoder_unavailable", 503, detail=str(error)
            ) from error
        self.cache.put(key, decoded)
        return decoded

    # ------------------------------------------------------------------------------------------------- on a pool thread

    def _run(self, job: Job) -> DecodedMedium:
        child = self._child()
        # Between here and ``release``, abandoning the job kills the child. Before, the job is only marked, and ends
        # here.
        if not job.take(child):
            raise ChildError("crash", "the client has left")
        try:
            reply, arrays = child.ask(job.header, job.blobs, self.policy.decode_timeout_s)
        except ChildError as error:
            raise decoding_refusal(job.header["kind"], error.reason, self.policy, error.detail) from error
        finally:
            job.release()
            if not child.fit:
                self._drop(child)
        if reply.get("error") == "refused":
            raise RefusedMediaError(str(reply.get("message")))
        if "error" in reply:
            raise decoding_refusal(job.header["kind"], reply["error"], self.policy, str(reply.get("detail", "")))
        return self._checked(job.header, reply, arrays)

    def _child(self) -> Child:
        """Return this thread's process, starting a new one if there is none that can take a job."""
        child = getattr(self._own, "child", None)
        if child is not None and child.fit:
            return child
        try:
            child = Child(self._limits)
        except (OSError, ChildError) as error:
            _log.error("a decoding process cannot be started: %s", error)
            raise RefusedMediaError(
                "media cannot be decoded at the moment", "decoder_unavailable", 503, detail=str(error)
            ) from error
        with self._lock:
            self.started += 1
            self._children.add(child)
            closed = self._closed
        # A child that was made while the sandbox closed is not in the list that close() went through.
        if closed:
            child.kill()
        self._own.child = child
        return child

    def _drop(self, child: Child) -> None:
        child.end()
        self._own.child = None
        with self._lock:
            self._children.discard(child)

    def _checked(self, header: dict[str, Any], reply: dict[str, Any], arrays: list[bytearray]) -> DecodedMedium:
        """Return the reply's bytes as a result. A client may have taken over the process, so everything is checked."""
        kind = header["kind"]
        try:
            if kind == AUDIO:
                return sound_of(reply, arrays, self.rules.samples(self.rules.sampling_rate))
            return frames_of(kind, reply, arrays, self.policy.max_frames)
        except InvalidReplyError as error:
            raise decoding_refusal(kind, "crash", self.policy, str(error)) from error


_Sampling = TypeVar("_Sampling")


def _accepted(make: Callable[..., _Sampling], options: Mapping[str, Any]) -> _Sampling:
    """Return the sampling that a client's options describe.

    Raises:
        RefusedMediaError: an option is out of range.
    """
    try:
        return make(**options)
    except MediaError as error:  # the text holds only the client's numbers and the rule
        raise RefusedMediaError(str(error)) from error


@dataclass
class _Flight:
    task: asyncio.Future[DecodedMedium]
    waiting: int = 0


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise RefusedMediaError("the file cannot be opened", detail=str(error)) from error
