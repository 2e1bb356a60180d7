"""Tags, sentinels and frame defaults. The names and values are the published ones: other projects import them."""

IGNORE_INDEX = -100
"""Label of a position that carries no loss."""

IMAGE_TOKEN_INDEX = -200
VIDEO_TOKEN_INDEX = -201
AUDIO_TOKEN_INDEX = -202
"""Sentinels the published code writes into ``input_ids`` where a tag stood. They appear here only before
expansion; the model itself sees ``config.image_token_id`` / ``config.video_token_id``, once per visual token."""

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_VIDEO_TOKEN = "<video>"
DEFAULT_AUDIO_TOKEN = "<audio>"

MODAL_INDEX_MAP = {
    DEFAULT_IMAGE_TOKEN: IMAGE_TOKEN_INDEX,
    DEFAULT_VIDEO_TOKEN: VIDEO_TOKEN_INDEX,
    DEFAULT_AUDIO_TOKEN: AUDIO_TOKEN_INDEX,
}

NUM_FRAMES = 8
"""Frames per video when neither the checkpoint nor the caller says otherwise."""

MAX_NUM_FRAMES = 1024
"""Most frames one clip may have. It keeps a typing mistake from allocating all memory."""

MAX_FRAMES = 32
"""Cap on frames of one clip in frames-per-second mode."""

TINY_MODEL_NAME = "videollama2-tiny"
"""Name of the checkpoint that ships inside the package."""

DEFAULT_MODEL_NAME = "DAMO-NLP-SG/VideoLLaMA2-7B"
"""Checkpoint that answers where none is named (published)."""

MAX_SEED = 2**63 - 1
"""Largest seed of a sampled answer."""
