"""Training on kept features: equal to training on pixels and sounds, and refused where they are others."""

import json
import os
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from videollama2 import cli, train

from .helpers.hearing import joint_flags, write_beats, write_records, write_seeing
from .helpers.runs import copy_checkpoint, difference, flags

FROZEN = {"freeze_vision_tower": True, "max_steps": 3, "per_device_train_batch_size": 7}


@pytest.fixture(scope="module")
def frames_differ(world):
    """The records of the world, in which some videos have numbers of frames and bounds of their own."""
    rows = json.loads((world / "mixed.json").read_text())
    videos = [row for row in rows if "video" in row]
    videos[0]["num_frames"], videos[1]["num_frames"] = 4, 6
    videos[2].update(start=0.5, end=1.5)
    path = world / "frames_differ.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def kept(world, parts, frames_differ, tmp_path_factory):
    """The folder of the features of these records."""
    folder = tmp_path_factory.mktemp("kept") / "features"
    assert compute(flags(world, parts, folder.parent, data_path=frames_differ, features=folder, **FROZEN)) == 0
    return folder


def compute(argv):
    return cli.main(["data", "features", *argv])


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("??/*")}


@pytest.mark.slow
def test_a_run_on_features_equals_one_on_pixels_and_resumes(run, kept, frames_differ, tmp_path, monkeypatch):
    options = {**FROZEN, "data_path": frames_differ}
    pixels = run(**options)
    monkeypatch.setattr("videollama2.model.features.encode_frames", None)  # the encoder is not run any more
    options |= {"features": kept, "save_strategy": "steps", "save_steps": 2}
    features = run(dataloader_num_workers=1, **options)
    assert features.losses == pytest.approx(pixels.losses, rel=1e-6)
    assert difference(features.weights, pixels.weights) < 1e-6
    resumed = tmp_path / "resumed"
    copy_checkpoint(features.folder / "checkpoint-2", resumed / "checkpoint-2")
    again = run(folder=resumed, **options)
    assert again.losses == features.losses and difference(again.weights, features.weights) == 0


def test_a_killed_command_goes_on(world, parts, kept, frames_differ, capsys):
    before = files(kept)
    gone, *_ = before
    gone.unlink()
    half = gone.with_name(f"{gone.name}.1.part")
    half.write_bytes(b"half")
    os.utime(half, (0, 0))  # it was left long ago
    assert compute(flags(world, parts, kept.parent, data_path=frames_differ, features=kept, **FROZEN)) == 0
    after = files(kept)
    assert after.keys() == before.keys()
    assert [path for path in after if after[path] != before[path]] == [gone]
    out = capsys.readouterr().out
    assert "computed 1 of them now" in out and "an epoch reads" in out and "of decoding" in out


@pytest.mark.slow
def test_only_the_encoders_are_read_from_a_whole_model(world, parts, kept, frames_differ, tmp_path):
    """The files may lack everything else; flags of sharing weights, here of a recipe, need no more processes."""
    beats = write_beats(tmp_path / "beats.pt")
    whole = write_seeing(tmp_path / "whole", parts, beats)
    file = whole / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "_tower." in name}, file)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("fully_shard: true\ndeepspeed: zero.json\n")
    options = {**FROZEN, "data_path": frames_differ, "va": True, "recipe": recipe}
    of_whole = {"model_path": whole, "vision_tower": None, "mm_projector_type": None}
    found = []
    for model in ({"audio_tower": beats}, of_whole):
        folder = tmp_path / f"features{len(found)}"
        assert compute(flags(world, parts, tmp_path / "out", **options, **model, features=folder)) == 0
        found.append({path.name: path.read_bytes() for path in files(folder)})
    assert found[0] == found[1]
    seen = {path.name: path.read_bytes() for path in files(kept)}
    assert seen.items() < found[1].items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze_vision_tower": False}, "--freeze_vision_tower False trains the vision encoder"),
        ({"media_cache": "x"}, "--media_cache"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer -1 (was -2)"),
        ({"num_frames": 4}, "num_frames 4 (was 8)"),
        ({"sampling": "time"}, "sampling time (was index)"),
        ({"bf16": True}, "precision mixed bfloat16 (was float32)"),
        ({"data_path": "mixed.json"}, "lacks features of"),
        ({"features": "nowhere"}, "there are no features; videollama2 data features computes them"),
    ],
)
def test_features_of_another_run_are_refused(world, parts, kept, frames_differ, tmp_path, capsys, changes, words):
    options = {**FROZEN, "data_path": frames_differ, "features": kept, **changes}
    if options["data_path"] == "mixed.json":
        options["data_path"] = world / "mixed.json"
    assert train.main(flags(world, parts, tmp_path / "out", **options)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert words in line


def test_features_of_another_encoder_are_refused(world, parts, kept, frames_differ, tmp_path, capsys):
    shutil.copytree(parts / "clip", tmp_path / "clip")
    (file,) = (tmp_path / "clip").glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("layers.0.mlp.fc1.weight"))
    weights[name][0, 0] += 1e-3
    save_file(weights, file, {"format": "pt"})
    options = {**FROZEN, "data_path": frames_differ, "features": kept, "vision_tower": tmp_path / "clip"}
    assert train.main(flags(world, parts, tmp_path / "out", **options)) == 2
    assert "vision_tower sha256:" in capsys.readouterr().err


def test_a_missing_or_damaged_file_stops_the_run(world, parts, kept, frames_differ, tmp_path, capsys):
    path = next(iter(files(kept)))
    whole = path.read_bytes()
    for content, words in ((None, "lacks features of"), (whole[:-8], "is damaged")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        options = {**FROZEN, "data_path": frames_differ, "features": kept, "output_dir": tmp_path / "out"}
        assert train.main(flags(world, parts, tmp_path / "out", **options)) == 2
        assert words in capsys.readouterr().err
        path.write_bytes(whole)


@pytest.mark.slow
def test_sounds_are_kept_too(run, world, parts, tmp_path):
    """Videos that are heard, one of them without a track, and sounds; without layers that are skipped at random."""
    seeing = write_seeing(tmp_path / "seeing", parts)
    beats = write_beats(tmp_path / "beats.pt", encoder_layerdrop=0.0)
    options = {**joint_flags(seeing, beats, write_records(tmp_path), max_steps=2), "tune_audio_tower": False}
    folder = tmp_path / "features"
    assert compute(flags(world, parts, tmp_path / "x", **options, features=folder)) == 0
    heard, features = run(**options), run(**options, features=folder)
    assert features.losses == pytest.approx(heard.losses, rel=1e-6)
    assert difference(features.weights, heard.weights) < 1e-6
    silent = [row.get("silent_videos") for row in heard.log]
    assert any(silent) and [row.get("silent_videos") for row in features.log] == silent


@pytest.mark.slow
def test_mixed_precision_and_pictures_of_a_folder(run, world, parts, tmp_path):
    """Half the bytes, and what the first convolution of the connector rounds anyway; frames as files of a folder."""
    (tmp_path / "frames").mkdir()
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (48, 32), color).save(tmp_path / "frames" / f"{number}.png")
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "a red circle"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"video": "frames", "conversations": turns}]))
    options = {**FROZEN, "data_path": tmp_path / "rows.json", "bf16": True}
    folder = tmp_path / "features"
    assert compute(flags(world, parts, tmp_path / "x", **options, features=folder)) == 0
    (file,) = files(folder)
    assert load_file(file)["features"].dtype == torch.bfloat16
    assert run(**options, features=folder).losses == run(**options).losses
