"""Media, the parts of messages that hold them, and the policy under which servers of the tests take them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from videollama2.serve.settings import MIB, MediaPolicy


def policy(**changes: Any) -> MediaPolicy:
    """A media policy: nothing allowed but data URLs, limits that tests reach quickly."""
    quick = MediaPolicy(
        max_bytes=16 * MIB,
        max_pixels=4_000_000,
        max_frames=64,
        max_duration_s=600.0,
        max_media=4,
        fetch_timeout_s=20.0,
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


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def demo(name: str) -> Path:
    """A sample that ships with the package: ``moving_shapes.mp4`` or ``shapes.png``."""
    import videollama2

    return Path(videollama2.__file__).parent / "assets" / "demo" / name


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, mime)}}


def url_part(url: str, kind: str = "image") -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def video_part(data: bytes, mime: str = "video/mp4", **options: Any) -> dict[str, Any]:
    extra = {"mm_processor_kwargs": options} if options else {}
    return {"type": "video_url", "video_url": {"url": data_url(data, mime)}, **extra}


def audio_part(data: bytes, form: str = "wav", **extra: Any) -> dict[str, Any]:
    """OpenAI's part for a sound."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}, **extra}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: Any) -> dict[str, Any]:
    """A message of the user."""
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return {"role": "user", "content": content}
