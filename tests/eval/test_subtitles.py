"""SubRip files as they are found, and the two choices of cues."""

import pytest

from tests.eval.helpers.reference import cases_dir
from videollama2.errors import DataError
from videollama2.eval.subtitles import Cue, check_subtitles, published_lines, read_subtitles, seen_lines


def srt(tmp_path, text):
    path = tmp_path / "a.srt"
    path.write_bytes(text.encode())
    return path


def test_lines_tags_and_numbers(tmp_path):
    text = (
        "\ufeff1\r\n00:00:01,000 --> 00:00:02.5\r\n<i>Two</i> lines\r\n<font color=red>of</font> text\r\n\r\n"
        "2\r\n00:00:03,000 --> 01:00:04,000\r\n\r\n3\r\n00:00:05,000 --> 00:00:06,000\r\nIn 1999\r\n"
    )
    assert read_subtitles(srt(tmp_path, text)) == [
        Cue(1000, 2500, "Two lines of text", "{\\i1}Two{\\i0} lines of text"),
        Cue(3000, 3604000, "", ""),
        Cue(5000, 6000, "In 1999", "In 1999"),
    ]


def test_an_empty_file_has_no_cues_and_another_one_is_refused(tmp_path):
    assert read_subtitles(srt(tmp_path, "")) == []
    with pytest.raises(DataError, match=r"a\.srt: holds no line like"):
        read_subtitles(srt(tmp_path, "<html>not found</html>"))
    (tmp_path / "b.srt").write_bytes(b"\xff\xfe1")
    with pytest.raises(DataError, match=r"b\.srt: cannot be read"):
        read_subtitles(tmp_path / "b.srt")


def test_seen_text_is_plain_words():
    (cue,) = read_subtitles(cases_dir() / "tags.srt")
    assert (cue.text, cue.published_text) == ("Tom & Jerry", "{\\an8}Tom &amp; Jerry")


@pytest.mark.parametrize(
    ("markup", "words"),
    [
        ("{\\an8}{\\i1}Hello{\\i0}", "Hello"),
        ("a<br>b<br />c", "a b c"),
        ("a\\Nb\\hc", "a b c"),
        ("&lt;3 &quot;x&quot; &#39;y&#39;&nbsp;z", "<3 \"x\" 'y' z"),
        ("\u200ea\u200b b\ufeff", "a b"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("<font color='#fff'>white</font> {text} stays", "white {text} stays"),
    ],
)
def test_markup_and_codes_are_no_words(tmp_path, markup, words):
    (cue,) = read_subtitles(srt(tmp_path, f"1\n00:00:01,000 --> 00:00:02,000\n{markup}\n"))
    assert cue.text == words


VTT = """WEBVTT - a title

NOTE 00:00:00.000 to 00:00:09.000
is no cue

intro
00:01.000 --> 00:02.500 align:start position:0%
<c.yellow>One</c><00:00:01.500> two

01:02:03.004 --> 01:02:04.000
Three
"""


@pytest.mark.parametrize("name", ["a.vtt", "a.srt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_webvtt_with_and_without_hours_in_any_unicode(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_bytes(VTT.replace("\n", "\r\n").encode(encoding))
    cues = [(cue.start, cue.end, cue.text) for cue in read_subtitles(path)]
    assert cues == [(1000, 2500, "One two"), (3723004, 3724000, "Three")]


def test_another_encoding_is_told_with_a_remedy(tmp_path):
    path = tmp_path / "a.srt"
    path.write_bytes("1\n00:00:01,000 --> 00:00:02,000\ncafé\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.srt: cannot be read as subtitles: it is not UTF-8 .* iconv"):
        read_subtitles(path)
    with pytest.raises(DataError, match=r"a\.srt: .*\(and 1 more subtitle files cannot be used\)"):
        check_subtitles([path, tmp_path / "none.srt", path])


def test_published_bounds_are_excluded_and_cues_repeat():
    cues = [Cue(0, 1000, "a", "a"), Cue(1000, 2000, "b", "b"), Cue(1500, 3000, "c", "c")]
    # 31 frames at 10 a second, 3 asked for: frames 5, 15 and 25, so 500, 1500 and 2500 ms.
    assert published_lines(cues, 31, 10, 3) == ["a", "b", "c"]
    assert published_lines(cues[:1], 11, 10, 4) == ["a"] * 4
    assert published_lines([Cue(0, 500, "a", "a")], 31, 10, 3) == []


def test_seen_cues_come_once_in_order():
    cues = [Cue(0, 1000, "a", "a"), Cue(1000, 2000, "b", "b"), Cue(5000, 6000, "c", "c")]
    assert seen_lines(cues, [0.1, 0.2, 1.0, 1.9]) == ["a", "b"]
