"""Lists the kinds of media, one row each, and the one function that finds the kind of a file.

Everything that depends on the kind alone is a column of :data:`KINDS`: how a prompt names such a medium, under which
key its values travel in a batch, what a caller may say about reading it. A new kind is a new row.

:func:`kind_of` looks at the content first and at the name only where the content says nothing. An animated picture
(gif, webp, png or avif with more than one frame) is a video; with one frame it is an image.
"""

from __future__ import annotations

import io
import mimetypes
import os
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO

from videollama2.constants import (
    AUDIO_TOKEN_INDEX,
    DEFAULT_AUDIO_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VIDEO_TOKEN,
    IMAGE_TOKEN_INDEX,
    VIDEO_TOKEN_INDEX,
)
from videollama2.errors import MediaError
from videollama2.stand_ins import HEAD_BYTES, stand_in

IMAGE, VIDEO, AUDIO = "image", "video", "audio"

SEEN = (IMAGE, VIDEO)
"""The kinds that a vision encoder takes."""


@dataclass(frozen=True)
class Kind:
    """The facts that hold for every medium of one kind.

    Attributes:
        name: the ``type`` of a message part, and the main type of its MIME types.
        tag: what stands for it in the text of a prompt.
        sentinel: the published id that stands for the tag in tokenised prompts.
        token_id_field: field of the model's configuration with the id of its placeholders.
        batch_key: name under which its preprocessed values go into a batch.
        mime: MIME type where the file's name suggests none.
        other_mime_types: types of another main type that may also hold this kind.
        options: what a message part may say about reading it.
    """

    name: str
    tag: str
    sentinel: int
    token_id_field: str
    batch_key: str
    mime: str
    other_mime_types: frozenset[str]
    options: frozenset[str]

    def fits_mime(self, mime: str) -> bool:
        """Whether content of this MIME type (in lower case) can be of this kind."""
        return mime.partition("/")[0] == self.name or mime in self.other_mime_types


KINDS: dict[str, Kind] = {
    IMAGE: Kind(
        name=IMAGE,
        tag=DEFAULT_IMAGE_TOKEN,
        sentinel=IMAGE_TOKEN_INDEX,
        token_id_field="image_token_id",
        batch_key="pixel_values",
        mime="image/png",
        other_mime_types=frozenset(),
        options=frozenset({"aspect_ratio"}),
    ),
    VIDEO: Kind(
        name=VIDEO,
        tag=DEFAULT_VIDEO_TOKEN,
        sentinel=VIDEO_TOKEN_INDEX,
        token_id_field="video_token_id",
        batch_key="pixel_values_videos",
        mime="video/mp4",
        other_mime_types=frozenset({"image/gif", "image/webp", "image/png", "image/apng", "image/avif"}),
        options=frozenset(
            {"start", "end", "num_frames", "sampling", "aspect_ratio", "backend", "use_audio", "windows"}
        ),
    ),
    AUDIO: Kind(
        name=AUDIO,
        tag=DEFAULT_AUDIO_TOKEN,
        sentinel=AUDIO_TOKEN_INDEX,
        token_id_field="audio_token_id",
        batch_key="input_features",
        mime="audio/wav",
        other_mime_types=frozenset(
            {"application/ogg", "video/3gpp", "video/mp2t", "video/mp4", "video/mpeg", "video/ogg", "video/quicktime"}
            | {"video/webm", "video/x-flv", "video/x-matroska", "video/x-ms-asf", "video/x-ms-wmv", "video/x-msvideo"}
        ),  # of videos that are only heard
        options=frozenset({"start", "end", "channels", "windows", "crop_start", "of_video"}),
    ),
}
"""Every kind of medium this software reads, by name, in the order of ``config.placeholder_ids``."""

TAGS: dict[str, str] = {kind.name: kind.tag for kind in KINDS.values()}
"""Tag of each kind, by the kind's name."""

_SUFFIXES = {
    IMAGE: ".avif .bmp .dib .gif .heic .heif .ico .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp",
    VIDEO: ".3gp .apng .asf .avi .divx .f4v .flv .h264 .h265 .hevc .ivf .m2ts .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpeg "
    ".mpg .mts .mxf .ogv .rm .rmvb .ts .vob .webm .wmv",
    AUDIO: ".aac .aif .aiff .flac .m4a .mp3 .oga .ogg .opus .wav .wma",
}
SUFFIXES: dict[str, frozenset[str]] = {name: frozenset(text.split()) for name, text in _SUFFIXES.items()}
"""Endings of file names, in lower case, by the kind they suggest. They count where the content says nothing."""

_GIF_STARTS = (b"GIF87a", b"GIF89a")
PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_IMAGE_STARTS = (
    _JPEG_START,
    b"II*\0",
    b"MM\0*",  # TIFF
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",  # JPEG 2000
    b"\0\0\1\0",  # icon
)
_VIDEO_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\0\0\1\xba",
    b"\0\0\1\xb3",  # MPEG program stream, MPEG video
    b"\0\0\0\1",  # H.264 or H.265 without a container
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"FLV\1",
    b"OggS",
    b"DKIF",
    b".RMF",
)
_AUDIO_STARTS = (b"ID3", b"fLaC", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1", b"\xff\xf9")  # mp3 and aac
_STILL_BRANDS = frozenset((b"avif", b"heic", b"heix", b"mif1"))
_MOVING_BRANDS = frozenset((b"avis", b"msf1", b"hevc", b"hevx"))
_AUDIO_BRANDS = frozenset((b"M4A ", b"M4B "))
_VIDEO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"moof")

# A walk over a picture's blocks ends here at the latest, so that a file made to be slow cannot be. At the usual 255
# bytes a block, a gif's first frame would be 50 MB by then.
_MAX_BLOCKS = 200_000


def kind_of(content: bytes | bytearray | memoryview | BinaryIO, name: str = "") -> str:
    """Return the kind of a medium: what its content says it is, else what the ending of its name says.

    Args:
        content: the whole content, or a binary file that can seek; of a file only a little is read, from its start.
        name: file name or path, for the ending and for messages.

    Raises:
        MediaError: there is no content, or it is of no kind in :data:`KINDS`.
    """
    if (kind := identify(content, name)) is not None:
        return kind
    if (kind := kind_by_name(name)) is not None:
        return kind
    known = " nor ".join(map(with_article, KINDS))
    raise MediaError(f"{name or 'the medium'}: is neither {known} by content or by extension ({_suffix(name)!r})")


def kind_by_name(name: str) -> str | None:
    """Return the kind that the ending of a file name suggests, or None."""
    suffix = _suffix(name)
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def is_told_by(head: bytes) -> bool:
    """Return whether the first :data:`HEAD_BYTES` of a file tell its kind as well as the whole file does.

    Those of a picture that may be animated do not.
    """
    return not head.startswith((*_GIF_STARTS, PNG_START))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def identify(content: bytes | bytearray | memoryview | BinaryIO, name: str = "") -> str | None:
    """Return the kind that the content shows, or None if the content is of no format known here.

    Args:
        content: as for :func:`kind_of`.
        name: its ending tells apart formats that begin alike (JPEG and Motion JPEG; Ogg with and without pictures).

    Raises:
        MediaError: there is no content, or something else stands in its place.
    """
    file = io.BytesIO(content) if isinstance(content, (bytes, bytearray, memoryview)) else content
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise MediaError(f"{name or 'the medium'}: the file is empty")
    if (reason := stand_in(head)) is not None:
        raise MediaError(f"{name or 'the medium'}: {reason}")
    if head.startswith(_JPEG_START):
        return VIDEO if _suffix(name) in (".mjpeg", ".mjpg") else IMAGE
    picture = _picture_kind(head, file)
    if picture is not None:
        return picture
    if _is_audio(head, name):
        return AUDIO
    return VIDEO if _is_video(head) else None


def animated_format(content: bytes | bytearray | memoryview | BinaryIO) -> str | None:
    """Return ``GIF``, ``PNG``, ``WEBP`` or ``AVIF`` for a picture of that format with several frames, else None.

    Args:
        content: as for :func:`kind_of`.
    """
    file = io.BytesIO(content) if isinstance(content, (bytes, bytearray, memoryview)) else content
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if _picture_kind(head, file) != VIDEO:
        return None
    starts = {"GIF": head.startswith(_GIF_STARTS), "PNG": head.startswith(PNG_START), "WEBP": head[:4] == b"RIFF"}
    return next((name for name, is_it in starts.items() if is_it), "AVIF")


def with_article(kind: str) -> str:
    """Return ``an image``, ``a video`` or ``a sound``, for messages."""
    word = "sound" if kind == AUDIO else kind
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def mime_type(kind: str, name: str | os.PathLike[str]) -> str:
    """Return the MIME type that the file's name suggests if it agrees with the kind, else the kind's usual one."""
    guessed = mimetypes.guess_type(PurePath(name).name)[0] or ""
    return guessed if KINDS[kind].fits_mime(guessed) else KINDS[kind].mime


def _picture_kind(head: bytes, file: BinaryIO) -> str | None:
    """Return image, or video for a picture with several frames; None for anything that is not a picture."""
    if head.startswith(_GIF_STARTS):
        return VIDEO if _gif_is_animated(file) else IMAGE
    if head.startswith(PNG_START):
        return VIDEO if _png_is_animated(file) else IMAGE
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        # Source: WebP container specification; bit 1 of the extended header's flags is "animation".
        return VIDEO if head[12:16] == b"VP8X" and head[20:21] and head[20] & 2 else IMAGE
    if head[4:8] == b"ftyp":
        return _brand_kind(head)
    if head.startswith(_IMAGE_STARTS):
        return IMAGE
    if head[:1] == b"P":  # Netpbm
        return IMAGE if head[1:2] in b"123456" and head[2:3] in b"\t\n\r #" and len(head) > 2 else None
    return IMAGE if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" else None


def _brand_kind(head: bytes) -> str | None:
    """Return the kind of an ISO file whose first box names picture formats (AVIF, HEIF) as its brands, else None."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major, others = head[8:12], {head[at : at + 4] for at in range(16, end - 3, 4)}
    if major not in _STILL_BRANDS | _MOVING_BRANDS:
        return None
    return VIDEO if ({major} | others) & _MOVING_BRANDS else IMAGE


def _is_audio(head: bytes, name: str) -> bool:
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE" or head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return True
    if head[4:8] == b"ftyp" and head[8:12] in _AUDIO_BRANDS:
        return True
    # These containers hold sound as well as video; only the name tells.
    if head.startswith((b"OggS", b"\x30\x26\xb2\x75")):
        return _suffix(name) in SUFFIXES[AUDIO]
    return head.startswith(_AUDIO_STARTS)


def _is_video(head: bytes) -> bool:
    if head.startswith(_VIDEO_STARTS):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return True
    if head[4:8] in _VIDEO_BOXES:
        return True
    # A transport stream has 0x47 at the start of every packet of 188 bytes, or of 192 with a time in front.
    return any(
        head[offset : offset + 1] == b"\x47" == head[offset + step : offset + step + 1]
        for offset, step in ((0, 188), (4, 192))
    )


def _png_is_animated(file: BinaryIO) -> bool:
    """Whether there is an ``acTL`` chunk of more than one frame before the pixels. Source: PNG, third edition."""
    file.seek(len(PNG_START))
    for _ in range(_MAX_BLOCKS):
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IDAT":
            return False
        if start[4:] == b"acTL":
            return int.from_bytes(file.read(4), "big") > 1
        file.seek(int.from_bytes(start[:4], "big") + 4, os.SEEK_CUR)
    return False


def _gif_is_animated(file: BinaryIO) -> bool:
    """Whether a second image begins after the first. Source: GIF89a specification, sections 18 to 23."""
    file.seek(10)
    screen = file.read(3)
    if len(screen) < 3:
        return False
    file.seek(_colour_table_bytes(screen[0]), os.SEEK_CUR)
    images, blocks = 0, 0
    while blocks < _MAX_BLOCKS:
        introducer = file.read(1)
        if introducer == b",":
            images += 1
            descriptor = file.read(9)
            if images > 1 or len(descriptor) < 9:
                break
            file.seek(_colour_table_bytes(descriptor[8]) + 1, os.SEEK_CUR)  # and the byte of the code size
        elif introducer == b"!":
            file.seek(1, os.SEEK_CUR)  # the extension's label
        else:
            break  # the end of the picture, or of the file
        blocks += _skip_sub_blocks(file, _MAX_BLOCKS - blocks)
    return images > 1


def _colour_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_sub_blocks(file: BinaryIO, most: int) -> int:
    """Go past a gif's data sub-blocks and return how many there were."""
    for number in range(1, most + 1):
        length = file.read(1)
        if length in (b"", b"\0"):
            return number
        file.seek(length[0], os.SEEK_CUR)
    return most
