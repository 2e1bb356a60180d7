"""MSVD-QA: 13,157 open questions about 520 short videos (Xu et al., ACM MM 2017)."""

from videollama2.eval.benchmarks.question_answer import QuestionAnswer


class MSVDQA(QuestionAnswer):
    """See the module."""

    name = "msvd_qa"
    title = "MSVD-QA"
    folder = "MSVD_Zero_Shot_QA"
    questions = 13157
    source = "https://github.com/xudejing/video-question-answering; in this form from Video-ChatGPT and Video-LLaVA"
    layout = """\
test_q.json              a list of {"video_name", "question", "question_id"}
test_a.json              a list of {"answer", "type", "question_id"}
videos/                  VIDEO_NAME.avi (or another kind of video)"""
    video_folders = ("videos", "YouTubeClips")
