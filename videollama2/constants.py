"""Defines tags, sentinels and frame defaults, with the published names and values: other projects import them."""

IGNORE_INDEX = -100
"""Label of a position that does not contribute to the loss."""

IMAGE_TOKEN_INDEX = -200
VIDEO_TOKEN_INDEX = -201
AUDIO_TOKEN_INDEX = -202
"""Sentinels that the published code writes into ``input_ids`` in place of tags. Here they occur only before
expansion; the model receives ``config.image_token_id`` or ``config.video_token_id``, once per visual token."""

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_VIDEO_TOKEN = "<video>"
DEFAULT_AUDIO_TOKEN = "<audio>"

MODAL_INDEX_MAP = {
    DEFAULT_IMAGE_TOKEN: IMAGE_TOKEN_INDEX,
    DEFAULT_VIDEO_TOKEN: VIDEO_TOKEN_INDEX,
    DEFAULT_AUDIO_TOKEN: AUDIO_TOKEN_INDEX,
}

NUM_FRAMES = 8
"""Number of frames per video if neither the checkpoint nor the caller gives one."""

MAX_NUM_FRAMES = 1024
"""Maximum number of frames of one clip, so that a typing mistake does not allocate all memory."""

MAX_FRAMES = 32
"""Maximum number of frames of one clip in frames-per-second mode."""

TINY_MODEL_NAME = "videollama2-tiny"
"""Name of the checkpoint that ships inside the package: it sees the built-in world."""

TINY_AV_MODEL_NAME = "videollama2-tiny-av"
"""Name of the other checkpoint that ships inside the package: it sees and hears the built-in world."""

BUILT_IN_MODELS = (TINY_MODEL_NAME, TINY_AV_MODEL_NAME)

DEFAULT_MODEL_NAME = "DAMO-NLP-SG/VideoLLaMA2-7B"
"""Checkpoint used if none is named (published default)."""

MAX_SEED = 2**63 - 1
"""Largest seed for a sampled answer."""

WORKER_HEART_BEAT_INTERVAL = 15
CONTROLLER_HEART_BEAT_EXPIRATION = 30
"""Seconds between the reports of a worker to its controller, and of silence after which it counts as gone."""

# Nothing here reads these published names. Programs import them together with others, so they must exist.
NUM_FRAMES_PER_SECOND = 1
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
