"""ActivityNet-QA: 8,000 open questions about 800 videos (arXiv 1906.02467)."""

from videollama2.eval.benchmarks.question_answer import QuestionAnswer


class ActivityNetQA(QuestionAnswer):
    """See the module."""

    name = "activitynet_qa"
    title = "ActivityNet-QA"
    folder = "Activitynet_Zero_Shot_QA"
    questions = 8000
    source = "https://github.com/MILVLG/activitynet-qa; videos: http://activity-net.org"
    layout = """\
test_q.json              a list of {"video_name", "question", "question_id"}
test_a.json              a list of {"answer", "type", "question_id"}
                         In place of both, of lmms-lab/ActivityNetQA: data/test-*.parquet
all_test/                v_VIDEO_NAME.mp4 (or another kind of video)"""
    video_folders = ("all_test", "videos")
    stem = "v_{}"
    types = dict(
        enumerate(["Motion", "Spatial", "Temporal", "Yes/No", "Color", "Object", "Location", "Number", "Other"])
    )
