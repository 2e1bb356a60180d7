"""VGGSound, test set: the event in a clip with its sound (arXiv 2004.14368). The published code calls it AVSSD."""

from videollama2.eval.benchmarks.heard_videos import HeardVideos
from videollama2.eval.measures import Aspect


class VGGSound(HeardVideos):
    """See the module."""

    name = "vggsound"
    title = "VGGSound"
    folder = "VGGSound_final"
    questions = 15341
    source = "https://www.robots.ox.ac.uk/~vgg/data/vggsound"
    layout = """\
avssd_test.json          here or in the folder above: a list of {"video": path, of which the end counts,
                         "conversations": [{"value": ignored}, {"value": label}]}
video/                   VIDEO.mp4"""
    annotations = ("avssd_test.json",)
    folders = ("video", "videos")
    beside = True
    prompt = "Identify the event in the video."
    aspects = (Aspect("qa", "audio_video_qa", exact_yes=True),)
