"""Limits media: their largest size and the formats that are opened. Code that opens a medium passes them down.

The defaults are for the user's own files. They keep a damaged header, which can name any size, from taking all memory.
Servers that open files of clients make a narrower object (:mod:`videollama2.serve.untrusted_media.child`).
"""

from __future__ import annotations

from dataclasses import dataclass

from videollama2.errors import MediaLimitError

_IMAGE_FORMATS = "JPEG MPO PNG WEBP GIF BMP DIB TIFF PPM AVIF JPEG2000 ICO TGA HEIF"
# Audio files are among them for their sound, and so that a video reader can tell them from what is not a medium at all.
_CONTAINERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,mjpeg,flv,gif,ogg,asf,h264,hevc,obu,av1,ivf,nut,mxf,dv,rm,wtv,"
    "yuv4mpegpipe,mp3,wav,w64,aiff,aac,flac"
)


@dataclass(frozen=True)
class MediaLimits:
    """Limits on what is opened and decoded.

    Attributes:
        max_side: longest side of a video's frames, in pixels.
        max_frame_pixels: most pixels of one frame of a video.
        max_image_pixels: most pixels of an image. Pillow by itself refuses at this default, twice its warning level.
        max_clip_bytes: most memory that the frames of one clip may take.
        max_clip_frames: most frames that are read of a video; None sets no limit of its own.
        max_seconds: longest video or sound; None sets no limit.
        max_sampling_rate: highest sampling rate of a sound, in Hz; twice what recorders offer.
        max_channels: most channels of a sound.
        max_streams: most streams of a file that is opened for its sound.
        image_formats: Pillow's names of the picture formats that are opened. Left out on purpose: formats that run
            other programs, such as EPS, which runs Ghostscript.
        containers: FFmpeg's names of the containers that are opened, joined by commas. Left out on purpose: playlists,
            image sequences and text formats, which make FFmpeg open other files than the one that was named.
        codecs: FFmpeg's names of the decoders that are used, joined by commas; None allows all.
    """

    max_side: int = 16384
    max_frame_pixels: int = 100_000_000
    max_image_pixels: int = 178_956_970
    max_clip_bytes: int = 8 * 2**30
    max_clip_frames: int | None = None
    max_seconds: float | None = None
    max_sampling_rate: int = 768_000
    max_channels: int = 64
    max_streams: int = 64
    image_formats: tuple[str, ...] = tuple(_IMAGE_FORMATS.split())
    containers: str = _CONTAINERS
    codecs: str | None = None

    def check_image(self, width: int, height: int, name: str) -> None:
        """Raise MediaLimitError where an image of this size is too large."""
        if width * height > self.max_image_pixels:
            rule = f"the image is {width}x{height} pixels; at most {self.max_image_pixels} pixels are accepted"
            raise MediaLimitError(name, rule)

    def check_frames(self, width: int, height: int, frames: int, name: str) -> None:
        """Raise MediaLimitError where a frame, or this many of them together, would take too much memory."""
        if max(width, height) > self.max_side or width * height > self.max_frame_pixels:
            raise MediaLimitError(
                name,
                f"frames of {width}x{height} are larger than {self.max_side} on a side "
                f"or {self.max_frame_pixels / 1e6:g} megapixels",
            )
        if frames * width * height * 3 > self.max_clip_bytes:
            raise MediaLimitError(
                name,
                f"{frames} frames of {width}x{height} take more than {self.max_clip_bytes / 2**30:g} GiB; "
                f"ask for fewer",
            )

    def check_duration(self, seconds: float, name: str, what: str = "the video") -> None:
        """Raise MediaLimitError where a video or sound of this length is too long."""
        if self.max_seconds is not None and seconds > self.max_seconds:
            rule = f"{what} is {seconds:.0f} s long; at most {self.max_seconds:g} s are accepted"
            raise MediaLimitError(name, rule)

    def check_sound(self, rate: int, channels: int, name: str) -> None:
        """Raise MediaLimitError where a sound has too many samples per second or too many channels."""
        if rate > self.max_sampling_rate:
            raise MediaLimitError(name, f"a sound of {rate} Hz has more than {self.max_sampling_rate} Hz")
        if channels > self.max_channels:
            raise MediaLimitError(name, f"a sound of {channels} channels has more than {self.max_channels}")

    def check_count(self, frames: int, name: str) -> None:
        """Raise MediaLimitError where more frames are to be read than one clip may have."""
        if self.max_clip_frames is not None and frames > self.max_clip_frames:
            rule = f"{frames} frames were asked for; at most {self.max_clip_frames} are given"
            raise MediaLimitError(name, rule)


OWN_FILES = MediaLimits()
"""Limits for files that the user of this program chose."""
