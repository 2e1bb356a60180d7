"""``videollama2 data check``: every problem with its record, counts and lengths, exit code 1 where there is any."""

import argparse
import json

import pytest

from videollama2 import cli
from videollama2.data.check import add_data_commands, check_files, histogram
from videollama2.shapes.sets import write_set


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    write_set(folder, videos=2, images=1, seed=3, questions_per_item=2, mcq_fraction=0.0)
    rows = json.loads((folder / "train.json").read_text())
    video = next(row["video"] for row in rows if "video" in row)
    talk = [{"from": "human", "value": "Is a circle a shape?"}, {"from": "gpt", "value": "yes"}]
    both = [{"from": "human", "value": "<video> or <video>?"}, {"from": "gpt", "value": "the first"}]
    rows += [{"id": "text", "conversations": talk}, {"id": "two", "video": [video] * 2, "conversations": both}]
    (folder / "good.json").write_text(json.dumps(rows))
    bad = [
        {"id": "gone", "video": "gone.mp4", "conversations": both[:1] + talk[1:]},
        {"id": "surplus", "video": video, "conversations": both},
        {"id": "untagged", "video": video, "conversations": talk},
        {"id": "odd", "conversations": talk[:1]},
    ]
    (folder / "bad.json").write_text(json.dumps([*rows, *bad]))
    (folder / "worst.json").write_text(json.dumps(bad))
    return folder


def run(*argv):
    parser = argparse.ArgumentParser()
    add_data_commands(parser.add_subparsers())
    args = parser.parse_args(["data", "check", *map(str, argv)])
    return args.run(args)


def test_good_file(world, capsys):
    assert run(world / "good.json", "--model-max-length", 60) == 0
    text = capsys.readouterr().out
    assert "5 records, 5 of them right: 1 image, 1 several media, 1 text only, 2 video" in text
    assert "visual tokens per record" in text


def test_records_that_are_too_long(world, capsys):
    """Cut at the end they are usable, unless no answer is left: there training would stop."""
    rows = json.loads((world / "good.json").read_text())
    ask, answer = ({"from": name, "value": "word " * 60} for name in ("human", "gpt"))
    rows += [{"id": "late", "conversations": [ask, answer]}, {"id": "cut", "conversations": [ask, answer, ask, answer]}]
    (world / "long.json").write_text(json.dumps(rows))
    assert run(world / "long.json", "--model-max-length", 100) == 0
    text = capsys.readouterr().out
    assert "longer than the maximum, to be cut at the end: 2 records" in text
    assert run(world / "long.json", "--model-max-length", 60) == 1
    text = capsys.readouterr().out
    assert "7 records, 5 of them right" in text
    assert "record 'late': no labelled token within the 60 tokens of model_max_length" in text
    assert text.endswith("model_max_length\n") and "2 problems:" in text


@pytest.mark.parametrize("name", ["bad.json", "worst.json"])
def test_every_problem_has_its_record(world, capsys, name):
    assert run(world / name) == 1
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if f"{name}: record" in line]
    assert len(lines) == 4
    for line, words in zip(
        lines,
        (["'gone'", "gone.mp4"], ["'surplus'", "2 media"], ["'untagged'", "0 media"], ["'odd'", "alternate"]),
        strict=True,
    ):
        assert all(word in line for word in words), line


def test_paths_are_relative_to_the_folder_given(world, tmp_path, capsys):
    (tmp_path / "moved.json").write_text((world / "good.json").read_text())
    assert run(tmp_path / "moved.json") == 1
    assert run(tmp_path / "moved.json", "--data-folder", world) == 0


def test_a_file_that_cannot_be_read_is_a_problem_beside_the_others(world, tmp_path):
    (tmp_path / "text.json").write_text("[")
    report = check_files([tmp_path / "text.json", world / "good.json"])
    assert len(report.problems) == 1
    assert "line 1" in report.problems[0]
    assert sum(report.modalities.values()) == 5
    assert report.text().startswith("5 records, 5 of them right")


def test_a_model_that_is_not_there_is_told(world, capsys):
    assert cli.main(["data", "check", str(world / "good.json"), "--model-path", "no/such-model"]) == 2
    error = capsys.readouterr().err
    assert "--model-path no/such-model: neither a folder" in error and "Traceback" not in error


def test_histogram():
    lines = histogram([5, 5, 5, 104])
    assert len(lines) == 10
    assert lines[0].split()[:4] == ["5", "to", "14", "3"]
    assert lines[-1].split()[-1] == "#" * 13
    assert lines[4].split()[-1] == "0"
    assert histogram([7]) == ["        7 to       7         1 " + "#" * 40]
