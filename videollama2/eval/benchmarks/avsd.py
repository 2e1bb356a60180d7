"""AVSD: questions from dialogues about videos of daily life, with their sound (arXiv 1901.09107)."""

from videollama2.eval.benchmarks.heard_videos import HeardVideos
from videollama2.eval.measures import Aspect


class AVSD(HeardVideos):
    """See the module."""

    name = "avsd"
    title = "AVSD"
    folder = "AVSD"
    questions = 18630
    source = "https://video-dialog.com; videos: https://prior.allenai.org/projects/charades"
    layout = """\
instruction_val.json     a list of {"video": path, of which the end counts, "conversations": [{"value": question},
                         {"value": answer}]}
Charades_v1_480/         VIDEO.mp4"""
    annotations = ("instruction_val.json",)
    folders = ("Charades_v1_480", "videos")
    aspects = (Aspect("qa", "audio_video_qa", exact_yes=True),)
