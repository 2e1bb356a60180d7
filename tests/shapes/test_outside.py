"""Records about things that the built-in world does not have."""

import json
import wave

import numpy as np
import pytest
from PIL import Image

from videollama2.data.records import parse_record
from videollama2.errors import DataError
from videollama2.media.audio import NO_TRACK, ClipRules, read_sound, read_video_sound
from videollama2.shapes.outside import OUTSIDE_KINDS, REFUSAL, main, write_outside
from videollama2.shapes.scene import FRAMES, SIZE
from videollama2.shapes.sounds import RATE, SECONDS


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Folders with two pictures and with two sounds, of which one is shorter than a clip."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for name in ("pictures", "sounds"):
        (folder / name).mkdir()
    for number, size in enumerate([(200, 150), (90, 300)]):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    for number, seconds in enumerate((0.7, 3.0)):
        with wave.open(str(folder / "sounds" / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(rng.integers(-9000, 9000, round(8000 * seconds)).astype("<i2").tobytes())
    return folder


@pytest.fixture(scope="module")
def written(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("outside")
    assert write_outside(out, given / "pictures", given / "sounds", count=3, seed=1) == 12
    return out


def test_every_question_is_refused_in_training_and_in_tests(written):
    rows = json.loads((written / "questions.json").read_text())
    assert [row["type"] for row in rows] == [kind for kind in OUTSIDE_KINDS for _ in range(3)]
    assert {row["answer"] for row in rows} == {REFUSAL}
    records = [row for name in ("seen", "both", "heard") for row in json.loads((written / f"{name}.json").read_text())]
    assert [row["id"] for row in records] == [row["id"] for row in rows]
    for number, (record, row) in enumerate(zip(records, rows, strict=True)):
        parse_record(record, number, "outside.json", written, row["type"] == "both")
        human, model = record["conversations"]
        assert human["value"].endswith(f">\n{row['question']}") and model["value"] == REFUSAL


def test_the_files_are_like_those_of_the_world(written):
    rules = ClipRules(RATE, SECONDS, 1, SECONDS)
    for row in json.loads((written / "questions.json").read_text()):
        kind = row["type"]
        if kind == "picture":
            assert Image.open(written / row["image"]).size == (SIZE, SIZE)
        elif kind == "sound":
            sound = read_sound(written / row["audio"], rules)
            assert sound.seconds == SECONDS and np.abs(sound.wave_S[-1600:]).max() > 0.01
        else:
            import av

            sound = read_video_sound(written / row["video"], rules)
            assert (sound.note == NO_TRACK) == (kind == "clip")
            with av.open(str(written / row["video"])) as container:
                frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
            assert len(frames) == FRAMES and frames[0].shape == (SIZE, SIZE)
            assert (frames[0] != frames[-1]).mean() > 0.1  # the view moves


def test_the_same_arguments_give_the_same_files(given, written, tmp_path, capsys):
    arguments = ["--pictures", given / "pictures", "--sounds", given / "sounds", "--count", 3, "--seed", 1]
    assert main(["--out", str(tmp_path / "again"), *map(str, arguments)]) == 0
    assert "wrote 12 records" in capsys.readouterr().out
    for path in written.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(written)).read_bytes() == path.read_bytes(), path


def test_a_folder_without_files_is_an_error(given, tmp_path):
    with pytest.raises(DataError, match="nothing is not a folder with files"):
        write_outside(tmp_path, tmp_path / "nothing", given / "sounds", 1, 0)
