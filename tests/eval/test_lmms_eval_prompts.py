"""The prompts of ``--prompt lmms-eval``, token for token beside those of lmms-eval's own tasks for the same questions.

Runs where lmms-eval is installed; docs/evaluate.md says how.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own (docs/evaluate.md)")

from tests.eval.helpers import tiny_sets
from tests.eval.helpers.reference import benchmarks_dir
from videollama2.eval.benchmarks import benchmark, configured
from videollama2.eval.items import Item
from videollama2.eval.reading.presets import LMMS_EVAL, PRESETS
from videollama2.hub import built_in_folder
from videollama2.processing.open_parts import load_tokenizer

pytestmark = pytest.mark.lmms_eval

LETTERS = "ABCDEFGHIJ"
TASK_OF = {
    "egoschema": "egoschema/egoschema",
    "mvbench": "mvbench/mvbench_{}",
    "perception_test": "perceptiontest/val/perceptiontest_mc",
    "videomme": "videomme/videomme",
    "activitynet_qa": "activitynetqa/activitynetqa_generation",
    "videochatgpt": "videochatgpt/videochatgpt_{}",
    "nextqa": "nextqa/nextqa_mc_test",
    "tempcompass": "tempcompass/tempcompass_{}",
    "tempcompass_captioning": "tempcompass/tempcompass_captioning",
    "longvideobench": "longvideobench/longvideobench_val_v",
    "lvbench": "lvbench/lvbench",
    "charades_sta": "charades_sta/charades",
    "tomato": "tomato/tomato",
    "mmvu": "mmvu/mmvu_val",
    "videommmu": "videommmu/{}",
}
"""The file of lmms-eval's task for each preset, where ``{}`` stands for the question's category."""
CATEGORY = {"multi-choice": "mc"}


def document(name: str, item: Item, part: int) -> dict[str, Any]:
    """Return the row of lmms-eval's data set that holds the question."""
    question = item.question if isinstance(item.question, str) else item.question[part]
    with_dots = [f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False)]
    rows: dict[str, dict[str, Any]] = {
        "egoschema": {"option": with_dots},
        "videomme": {"options": with_dots},
        "mvbench": {"candidates": list(item.options)},
        "perception_test": {"options": list(item.options)},
        "videochatgpt": {"question_1": question},
        "nextqa": {f"a{number}": option for number, option in enumerate(item.options)},
        "tempcompass_captioning": {"question": item.instruction},
        "longvideobench": {
            f"option{number}": item.options[number] if number < len(item.options) else "N/A" for number in range(5)
        },
        "charades_sta": {"caption": question},
        "tomato": {"options": list(item.options)},
        "mmvu": {"question_type": "multiple-choice", "choices": dict(zip(LETTERS, item.options, strict=False))},
        "videommmu": {
            "question_type": "multiple-choice" if item.options else "open",
            "options": list(item.options),
        },
    }
    return {"question": question, **rows.get(name, {})}


def task(name: str, category: str) -> tuple[Any, Any]:
    """Return lmms-eval's class of tasks, and what its methods read of a task whose data set is not loaded."""
    tasks, utils = (importlib.import_module(f"lmms_eval.{module}") for module in ("api.task", "utils"))
    category = CATEGORY.get(category, category.lower().replace(" ", "_").replace("-", "_"))
    path = Path(utils.__file__).parent / "tasks" / f"{TASK_OF[name].format(category)}.yaml"
    config = tasks.TaskConfig(**utils.load_yaml_config(yaml_path=str(path)))
    made = SimpleNamespace(config=config, _config=config, features=[], model_name="videollama2")
    tasks.ConfigurableTask._prepare_model_specific_config(made)
    return tasks.ConfigurableTask, made


def test_every_preset_has_a_task():
    assert TASK_OF.keys() == PRESETS[LMMS_EVAL].keys()


@pytest.mark.parametrize("name", TASK_OF)
def test_prompts_and_lengths_are_those_of_the_task(name, tmp_path, monkeypatch):
    if name == "longvideobench":
        pytest.importorskip("decord", reason="lmms-eval's task imports decord")
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # several tasks read it when they are imported
    own = benchmark(name)
    data = benchmarks_dir() / own.folder
    if not data.is_dir():
        data = tmp_path
        getattr(tiny_sets, own.folder.removesuffix("_sta"))(data)
        if name == "tempcompass_captioning":
            captions = {"77": {"action": [{"question": "Information A: it runs\nGenerated Caption:"}]}}
            (data / "captioning.json").write_text(json.dumps(captions))
    asked = configured(name, prompt=LMMS_EVAL)
    tokenizer = load_tokenizer(built_in_folder("videollama2-tiny"))
    lengths = set()
    items = asked.asked(data)
    assert items
    for item, before in zip(items, own.load(data), strict=True):
        methods, made = task(name, item.category)
        lengths.add((made.config.generation_kwargs or {}).get("max_new_tokens"))
        for part, text in enumerate(item.instructions):
            theirs = methods.doc_to_text(made, document(name, before, part))
            assert tokenizer(text).input_ids == tokenizer(theirs).input_ids and text == theirs
    assert lengths == {PRESETS[LMMS_EVAL][name].max_new_tokens}
