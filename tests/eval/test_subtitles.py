"""SubRip files as they are found, and the two choices of cues."""

import pytest

from videollama2.errors import DataError
from videollama2.eval.subtitles import Cue, published_lines, read_srt, seen_lines


def srt(tmp_path, text):
    path = tmp_path / "a.srt"
    path.write_bytes(text.encode())
    return path


def test_lines_tags_and_numbers(tmp_path):
    text = (
        "\ufeff1\r\n00:00:01,000 --> 00:00:02.5\r\n<i>Two</i> lines\r\n<font color=red>of</font> text\r\n\r\n"
        "2\r\n00:00:03,000 --> 01:00:04,000\r\n\r\n3\r\n00:00:05,000 --> 00:00:06,000\r\nIn 1999\r\n"
    )
    assert read_srt(srt(tmp_path, text)) == [
        Cue(1000, 2500, "Two lines of text", "{\\i1}Two{\\i0} lines of text"),
        Cue(3000, 3604000, "", ""),
        Cue(5000, 6000, "In 1999", "In 1999"),
    ]


def test_an_empty_file_has_no_cues_and_another_one_is_refused(tmp_path):
    assert read_srt(srt(tmp_path, "")) == []
    with pytest.raises(DataError, match=r"a\.srt: holds no line like"):
        read_srt(srt(tmp_path, "<html>not found</html>"))
    (tmp_path / "b.srt").write_bytes(b"\xff\xfe1")
    with pytest.raises(DataError, match=r"b\.srt: cannot be read"):
        read_srt(tmp_path / "b.srt")


def test_published_bounds_are_excluded_and_cues_repeat():
    cues = [Cue(0, 1000, "a", "a"), Cue(1000, 2000, "b", "b"), Cue(1500, 3000, "c", "c")]
    # 31 frames at 10 a second, 3 asked for: frames 5, 15 and 25, so 500, 1500 and 2500 ms.
    assert published_lines(cues, 31, 10, 3) == ["a", "b", "c"]
    assert published_lines(cues[:1], 11, 10, 4) == ["a"] * 4
    assert published_lines([Cue(0, 500, "a", "a")], 31, 10, 3) == []


def test_seen_cues_come_once_in_order():
    cues = [Cue(0, 1000, "a", "a"), Cue(1000, 2000, "b", "b"), Cue(5000, 6000, "c", "c")]
    assert seen_lines(cues, [0.1, 0.2, 1.0, 1.9]) == ["a", "b"]
