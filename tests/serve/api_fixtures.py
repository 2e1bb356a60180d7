"""Media and policies that the tests of the API share."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.conftest import golden_audio_dir
from tests.serve.servers import AppThread
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.settings import MIB, MediaPolicy

BASE = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
"""The fields that a request must have."""


def request(**fields: Any) -> ChatRequest:
    """A request with further fields."""
    return ChatRequest.model_validate({**BASE, **fields})


def faults(**fields: Any) -> list[Any]:
    """What is said of a request that is refused."""
    with pytest.raises(ValidationError) as caught:
        request(**fields)
    return caught.value.errors()


def policy(**changes: Any) -> MediaPolicy:
    """A media policy: nothing allowed but data URLs, limits that tests reach quickly."""
    quick = MediaPolicy(
        max_bytes=16 * MIB,
        max_pixels=4_000_000,
        max_frames=64,
        max_duration_s=600.0,
        max_media=4,
        fetch_timeout_s=5.0,
        decode_timeout_s=20.0,
        decode_memory_bytes=1024 * MIB,
        decode_processes=1,
    )
    return replace(quick, **changes)


def picture(width: int = 64, height: int = 48, colour: Sequence[int] = (200, 30, 30), form: str = "PNG") -> bytes:
    """An encoded picture with a square in one corner."""
    image = Image.new("RGB", (width, height), tuple(colour))
    image.paste((250, 250, 250), (0, 0, max(1, width // 3), max(1, height // 3)))
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def film(frames: int = 16, width: int = 64, height: int = 48, fps: int = 8, form: str = "mp4") -> bytes:
    """An encoded video of a square that moves."""
    codec, pixels = ("gif", "rgb8") if form == "gif" else ("libx264", "yuv420p")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as output:
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for number in range(frames):
            frame_HWC = np.full((height, width, 3), (20, 40, 160), np.uint8)
            left = number * (width - 12) // max(frames - 1, 1)
            frame_HWC[8:20, left : left + 12] = (240, 220, 20)
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def bomb_png(side: int = 60_000) -> bytes:
    """A PNG of two megabytes that says it is 60,000 pixels wide and high, and unpacks to them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows, many = zlib.compressobj(1), 100
    some = bytes(many * (1 + (side + 7) // 8))
    data = b"".join(rows.compress(some) for _ in range(side // many)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, mime)}}


def video_part(data: bytes, mime: str = "video/mp4", **options: Any) -> dict[str, Any]:
    extra = {"mm_processor_kwargs": options} if options else {}
    return {"type": "video_url", "video_url": {"url": data_url(data, mime)}, **extra}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: Any) -> dict[str, Any]:
    """A message of the user."""
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return {"role": "user", "content": content}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -------------------------------------------------------------------------------------------------- a server for real


@lru_cache
def tiny() -> Any:
    """Model and processor that ship with the package."""
    from videollama2 import model_init

    return model_init("videollama2-tiny")[:2]


def tiny_engine(**options: Any) -> Any:
    from videollama2.inference.engine import Engine

    return Engine(*tiny(), **{"max_batch": 8, "max_length": 1024, **options})


@lru_cache
def av_model() -> Any:
    """A random model that sees and hears, and its processor."""
    import torch

    from videollama2.checkpoints import load_checkpoint

    folder = golden_audio_dir() / "models" / "qwen2-stc_connector_v35-siglip-beats"
    model, processor = load_checkpoint(folder, dtype=torch.float32)
    return model.eval(), processor


def av_engine(**options: Any) -> Any:
    from videollama2.inference.engine import Engine

    return Engine(*av_model(), **{"max_batch": 2, "max_length": 4096, **options})


def audio_part(data: bytes, form: str = "wav", **extra: Any) -> dict[str, Any]:
    """OpenAI's part for a sound."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}, **extra}


@contextmanager
def live_chat(
    engine: Any = None, security: Any = None, limits: Any = None, **policy_changes: Any
) -> Iterator[tuple[AppThread, Any]]:
    """A server that answers chats with the tiny model: the parts of a worker without its controller."""
    from videollama2.serve.api.routes import openai_router
    from videollama2.serve.settings import Security
    from videollama2.serve.untrusted_media.sandbox import Sandbox
    from videollama2.serve.web.app import make_app
    from videollama2.serve.worker.handlers import WorkerHandlers
    from videollama2.serve.worker.service import ChatService

    own = policy(**policy_changes)
    engine = engine or tiny_engine()
    box = Sandbox.of(own, engine.processor)
    service = ChatService(engine, "tiny", own, box, limits)
    app = make_app("test", security or Security())
    app.include_router(openai_router(WorkerHandlers(service)))
    server = AppThread(app)
    try:
        yield server, service
    finally:
        server.close()
        box.close()
        engine.close()


def demo(name: str) -> Path:
    """A sample that ships with the package: ``moving_shapes.mp4`` or ``shapes.png``."""
    import videollama2

    return Path(videollama2.__file__).parent / "assets" / "demo" / name
