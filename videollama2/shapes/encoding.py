"""Encodes clips and pictures of the built-in world as the bytes of ordinary files."""

import io

import numpy as np

from videollama2.garbage_collection import leave_garbage_to_parent
from videollama2.shapes.scene import FPS
from videollama2.shapes.sounds import RATE


def encode_video(frames_THWC: np.ndarray, wave_S: np.ndarray | None = None) -> bytes:
    """Encode uint8 RGB frames (T, H, W, 3) of even height and width as H.264 in mp4; equal input gives equal bytes.

    ``wave_S`` is the sound of the clip, float32 at :data:`~videollama2.shapes.sounds.RATE`, encoded as AAC.
    """
    import av

    leave_garbage_to_parent()
    frame_count, height, width = frames_THWC.shape[:3]
    # The whole clip is converted to YUV as one tall picture: a conversion per frame would cost as much as the encoding.
    tall = av.VideoFrame.from_ndarray(frames_THWC.reshape(-1, width, 3), format="rgb24")
    planes = tall.reformat(format="yuv420p").to_ndarray().reshape(-1).astype(np.uint8, copy=False)
    # YUV 4:2:0 has a luma value for each pixel and two chroma values for each 2 x 2 pixels. The planes of the tall
    # picture are cut into frames, so that each row of ``packed`` holds the three planes of one frame.
    luma = frame_count * height * width
    parts = (planes[:luma], planes[luma : luma * 5 // 4], planes[luma * 5 // 4 :])
    packed = np.concatenate([part.reshape(frame_count, -1) for part in parts], axis=1)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.thread_count = 1
        sound = None
        if wave_S is not None:
            # The default search for the best coding takes eight times as long and sounds no better here.
            sound = container.add_stream("aac", rate=RATE, layout="mono", options={"aac_coder": "fast"})
            sound.codec_context.bit_rate = 64_000
        for pixels in packed.reshape(frame_count, height * 3 // 2, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="yuv420p")))
        container.mux(stream.encode())
        if sound is not None and wave_S is not None:
            heard = av.AudioFrame.from_ndarray(wave_S[None], format="fltp", layout="mono")
            heard.sample_rate, heard.pts = RATE, 0
            container.mux(sound.encode(heard))
            container.mux(sound.encode())
    return buffer.getvalue()


def encode_image(frames_THWC: np.ndarray) -> bytes:
    """Encode the first of uint8 RGB frames (T, H, W, 3) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frames_THWC[0]).save(buffer, format="PNG")
    return buffer.getvalue()
