"""``data check --decode``: what only decoding finds, sound tracks, and the processes that decode."""

import json
import multiprocessing
import os
import signal
import wave

import psutil
import pytest

from tests.conftest import ROOT, golden_audio_dir, write_cut_video
from tests.data.helpers import CASES, run_check
from tests.helpers.forked import end_all, receive, start_function
from videollama2.data.check import check_files
from videollama2.data.files_check import _executor


@pytest.fixture
def no_frame(tmp_path):
    """An mp4 whose header promises a video stream, and that holds no frame of it."""
    import av

    with av.open(str(tmp_path / "empty.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    talk = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "x"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "none", "video": "empty.mp4", "conversations": talk}]))
    return tmp_path / "data.json"


@pytest.mark.parametrize("how", ["open", "decode"])
def test_a_video_without_a_frame_is_not_right(no_frame, how):
    assert (no_frame.parent / "empty.mp4").stat().st_size < 600
    (problem,) = check_files([no_frame], media=how).problems
    assert "record 'none': " in problem and "empty.mp4: " in problem


def test_decoding_finds_what_opening_does_not(tmp_path, capsys):
    """The frames are noise where the packets are listed; only a decoder can tell."""
    whole = bytearray((CASES / "m" / "a.mp4").read_bytes())
    begin = whole.index(b"mdat") + 4
    end = whole.index(b"moov") if whole.index(b"moov") > begin else len(whole)
    whole[begin:end] = bytes(reversed(whole[begin:end]))
    (tmp_path / "noise.mp4").write_bytes(whole)
    rows = json.loads((CASES / "mix_lfs.json").read_text())[:2]
    (tmp_path / "a.mp4").write_bytes((CASES / "m" / "a.mp4").read_bytes())
    rows[0]["video"], rows[1]["video"] = "a.mp4", "noise.mp4"
    (tmp_path / "data.json").write_text(json.dumps(rows))
    assert not check_files([tmp_path / "data.json"]).problems
    assert run_check(tmp_path / "data.json", "--decode", "--workers", 2) == 1
    text = capsys.readouterr().out
    assert "2 records, 1 of them right: 1 video" in text and "noise.mp4: no frame can be decoded" in text
    assert "2 files decoded in " in text and " a second" in text


def test_decoding_looks_at_the_part_that_is_trained_on(tmp_path):
    row = json.loads((CASES / "mix_lfs.json").read_text())[0]
    (tmp_path / "data.json").write_text(json.dumps([{**row, "start": 0.1}, {**row, "id": "late", "start": 60}]))
    assert not check_files([tmp_path / "data.json"], CASES).problems
    report = check_files([tmp_path / "data.json"], CASES, media="decode")
    (problem,) = report.problems
    assert "record 'late'" in problem and "start 60 s is after the end of the video" in problem


def test_damage_that_leaves_a_file_usable_is_a_remark(tmp_path):
    write_cut_video(ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4", tmp_path / "cut.mkv")
    talk = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "x"}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "cut", "video": "cut.mkv", "conversations": talk}]))
    report = check_files([tmp_path / "data.json"], media="decode")
    assert not report.problems and report.modalities["video"] == 1
    (remark,) = report.remarks
    assert "cut.mkv" in remark and "damaged or truncated" in remark and "1 remark:" in report.text()


def sound_rows(folder):
    media = golden_audio_dir() / "media"
    answer = {"from": "gpt", "value": "yes"}
    named = {
        "sound": ("<audio>", {"audio": str(media / "door_cut.wav")}),
        "heard": ("<video>", {"video": str(media / "av_stereo_44k_3s.mp4"), "va": True}),
        "mute": ("<video>", {"video": str(media / "video_no_audio.mp4"), "va": True}),
        "seen": ("<video>", {"video": str(media / "video_no_audio.mp4")}),
        "text": ("<audio>", {"audio": str(media / "not_audio.wav")}),
        "no track": ("<audio>", {"audio": str(media / "video_no_audio.mp4")}),
    }
    rows = [
        {"id": name, **fields, "conversations": [{"from": "human", "value": f"{tag}\nIs it loud?"}, answer]}
        for name, (tag, fields) in named.items()
    ]
    path = folder / "sounds.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("how", ["open", "decode"])
def test_tracks_and_seconds_of_sounds(tmp_path, how):
    report = check_files([sound_rows(tmp_path)], media=how)
    assert report.modalities == {"audio": 1, "audio-video": 2, "video": 1}
    with wave.open(str(golden_audio_dir() / "media" / "door_cut.wav")) as file:
        seconds = file.getnframes() / file.getframerate()
    assert sorted(report.sounds) == pytest.approx([seconds, 3.0], abs=0.05)
    assert (report.silent, report.wrong) == (1, 2)
    assert f"sound: 2 tracks of {seconds:.1f} to 3.0 s" in report.text()
    assert "1 video without a track, heard as silence" in report.text()
    assert any("record 'no track'" in line and "no sound track" in line for line in report.problems)


def test_sounds_are_counted_also_for_a_model_that_does_not_hear_yet(tmp_path, capsys):
    assert run_check(sound_rows(tmp_path), "--quick", "--va") == 0
    text = capsys.readouterr().out
    assert "6 records, 6 of them right: 3 audio, 3 audio-video" in text
    assert "sound: 1496 tokens each" in text


def _begin_to_decode(connection):
    executor = _executor(True, 1)
    connection.send(executor.submit(os.getpid).result())
    signal.pause()


def test_processes_that_decode_end_with_the_command():
    ours, theirs = multiprocessing.Pipe()
    command = start_function(_begin_to_decode, theirs)
    theirs.close()
    try:
        worker = psutil.Process(receive(ours))
        os.kill(command.pid, signal.SIGKILL)  # it alone
    finally:
        end_all([command], timeout_s=30)
    _, left = psutil.wait_procs([worker], timeout=60)
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []
