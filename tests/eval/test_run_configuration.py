"""A run is told by all that changes an answer: questions, texts, model and settings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.eval.helpers.reference import benchmarks_dir
from tests.eval.helpers.samples import item
from videollama2.checkpoints.files import resolve_name
from videollama2.checkpoints.fingerprint import model_revision
from videollama2.errors import ConfigError
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.running.run import EvaluationPlan, ModelChoice, items_digest
from videollama2.eval.running.runner import AnswerOptions
from videollama2.eval.store import configuration_hash


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"options": AnswerOptions(max_new_tokens=16, num_frames=4)}, {"max_new_tokens": 15}, {"limit": 2}]
)
def test_another_configuration_never_reuses_answers(evaluate, tmp_path, changes):
    evaluate(tmp_path / "out", limit=3)
    with pytest.raises(ConfigError, match="holds answers of another configuration"):
        evaluate(tmp_path / "out", **{"limit": 3, **changes})


def test_everything_that_changes_an_answer_is_in_the_hash_and_nothing_else(world, tmp_path):
    found = benchmark("moving_shapes")
    plan = EvaluationPlan(found, world, tmp_path, ModelChoice("videollama2-tiny", options={"device": "cpu"}))
    items = plan.items()

    def hashed(**changes):
        changed = replace(plan, **changes)
        return configuration_hash(changed.configuration(changed.items() if "benchmark" in changes else items))

    def model(**options):
        return {"model": ModelChoice("videollama2-tiny", options={"device": "cpu", **options})}

    other = [
        model(device="cuda:1"),
        model(attn_implementation="eager"),
        model(load_4bit=True),
        model(load_8bit=True),
        {"model": ModelChoice("videollama2-tiny", dtype="bfloat16", options={"device": "cpu"})},
        {"benchmark": found.configure(prompt="options")},
        {"benchmark": benchmark("mvbench"), "data": benchmarks_dir() / "mvbench"},
    ]
    settings = {"num_frames": 4, "video_backend": "pyav", "max_new_tokens": 9, "temperature": 0.2, "top_p": 0.5}
    other += [{"options": AnswerOptions(**{name: value})} for name, value in {**settings, "seed": 1}.items()]
    hashes = [hashed(), *(hashed(**changes) for changes in other)]
    assert len(set(hashes)) == len(hashes)
    same = [
        model(device="cpu", attn_implementation="sdpa"),
        {"batch_size": 3},
        {"rank": 1, "world": 2},
        {"protocol": "strict"},
        {"strict_data": True},
        {"output": tmp_path},
        {"retry_failed": True},
    ]
    assert {hashed(**changes) for changes in same} == {hashed()}
    assert {"project_version", "model_revision"} <= set(plan.configuration(items))


def test_a_model_is_told_by_its_files_and_those_it_builds_on(tmp_path):
    tiny = Path(resolve_name("videollama2-tiny"))
    assert model_revision("videollama2-tiny") == model_revision(str(tiny))
    whole, bare, tower = (shutil.copytree(tiny, tmp_path / name) for name in ("whole", "bare", "tower"))
    (bare / "config.json").write_text('{"model_type": "qwen2"}')
    adapter, connector = tmp_path / "adapter", tmp_path / "connector"
    adapter.mkdir()
    connector.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(whole)}))
    (connector / "mm_projector.bin").write_bytes(b"w")
    fields = {"model_type": "videollama2", "_name_or_path": str(bare), "mm_vision_tower": str(tower)}
    (connector / "config.json").write_text(json.dumps(fields))

    def revisions():
        return [model_revision(str(path)) for path in (whole, adapter, connector)]

    before = revisions()
    assert model_revision(str(adapter), str(whole)) == before[1]  # named by it, or given
    for path, changed in ((whole, [0, 1]), (bare, [2]), (tower, [2])):
        with (path / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))
        now = revisions()
        assert [index for index in range(3) if now[index] != before[index]] == changed
        before = now


@pytest.mark.slow
def test_other_subtitles_are_other_questions(evaluate, copied, tmp_path):
    pytest.importorskip("pyarrow")
    data = copied("videomme")
    found = benchmark("videomme").configure(subtitles="seen")
    evaluate(tmp_path / "out", "videomme", data, found=found, limit=3)
    evaluate(tmp_path / "plain", "videomme", data, limit=3)
    file = data / "subtitles" / f"{found.load(data)[0].group}.srt"
    file.write_text(file.read_text().replace("Blue", "Green"))
    with pytest.raises(ConfigError, match=r"another configuration \(texts: "):
        evaluate(tmp_path / "out", "videomme", data, found=found, limit=3)
    evaluate(tmp_path / "plain", "videomme", data, limit=3)  # asked without them


def test_items_tell_whether_the_questions_are_the_same():
    items = [item("a", "1.mp4"), item("b", "1.mp4")]
    assert items_digest(items) == items_digest(list(items))
    assert items_digest(items) != items_digest(items[::-1])
    assert items_digest(items) != items_digest([item("a", "1.mp4", 0.5), item("b", "1.mp4")])
