"""The prompts of other harnesses, as recorded from lmms-eval 0.7.2, and the ways to choose frames."""

import json

import pytest

from tests.eval.helpers import tiny_sets
from tests.eval.helpers.reference import benchmarks_dir
from videollama2.errors import ConfigError
from videollama2.eval.__main__ import main
from videollama2.eval.benchmarks import benchmark, configured
from videollama2.eval.items import Item
from videollama2.eval.reading.presets import LMMS_EVAL, PRESETS

pytestmark = pytest.mark.usefixtures("without_charts")

LETTER = "Answer with the option's letter from the given choices directly."
VIDEOMME = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option."
)


def lines(item):
    return [f"{letter}. {option}" for letter, option in zip("ABCDE", item.options, strict=False)]


EXPECTED = {
    "egoschema": (16, lambda item: "\n".join([item.question, *lines(item), LETTER])),
    "mvbench": (
        16,
        lambda item: (
            f"Question:{item.question}\nOption:\n"
            + "".join(f"({line[0]}) {line[3:]}\n" for line in lines(item))
            + "Only give the best option.\n"
        ),
    ),
    "perception_test": (2048, lambda item: "\n".join([item.question, *lines(item), LETTER])),
    "videomme": (16, lambda item: "\n".join([VIDEOMME, item.question, *lines(item), "", LETTER])),
    "activitynet_qa": (
        64,
        lambda item: f"{item.question.capitalize()}? Answer the question using a single word or phrase.",
    ),
    "videochatgpt": (1024, lambda item: item.question if isinstance(item.question, str) else tuple(item.question)),
}


ASKED_AS_BY_DEFAULT = {
    "tempcompass": 2048,
    "tempcompass_captioning": 2048,
    "longvideobench": 32,
    "charades_sta": 50,
    "mmvu": 1024,
    "videommmu": 1024,
}
"""Benchmarks whose usual prompts are those of lmms-eval, with its longest answers."""
OTHERS = {
    "nextqa": (2048, "how 0\nA. run\nB. sit\nC. eat\nD. nap\nE. 1"),
    "lvbench": (16, "Who?\n(A) red\n(B) blue\nAnswer the question with the option letter"),
}
TOMATO = (
    "You will be provided with frames uniformly sampled from a video, the frames are provided in chronological order "
    "of the video. Analyze these frames and provide the answer to the question about the video content. Answer the "
    "multiple-choice question about the video content.\n\nYou must use these frames"
)


@pytest.mark.parametrize("name", EXPECTED)
def test_prompts_and_lengths_of_lmms_eval(name):
    longest, prompt = EXPECTED[name]
    own, found = benchmark(name), configured(name, prompt=LMMS_EVAL)
    items = found.asked(benchmarks_dir() / own.folder)
    assert [item.instruction for item in items] == [prompt(item) for item in items]
    assert [item.id for item in items] == [item.id for item in own.load(benchmarks_dir() / own.folder)]
    assert found.max_new_tokens == longest and own.max_new_tokens == 2048
    assert found.all_settings()["prompt"] == LMMS_EVAL and "prompt" not in own.all_settings()


def test_prompts_and_lengths_of_benchmarks_beyond_the_papers(tmp_path):
    for name, (longest, text) in OTHERS.items():
        getattr(tiny_sets, name)(tmp_path / name)
        found = configured(name, prompt=LMMS_EVAL)
        assert found.asked(tmp_path / name)[0].instruction == text and found.max_new_tokens == longest
    tiny_sets.tomato(tmp_path / "tomato")
    asked, usual = (
        made.asked(tmp_path / "tomato")[0] for made in (configured("tomato", prompt=LMMS_EVAL), benchmark("tomato"))
    )
    assert asked.instruction.startswith(TOMATO)
    assert asked.instruction.split("You must")[1] == usual.instruction.split("You must")[1]
    for name, longest in ASKED_AS_BY_DEFAULT.items():
        item = Item("1", "a.mp4", "What?", "the usual prompt")
        assert PRESETS[LMMS_EVAL][name].text(item) == item.instruction
        assert configured(name, prompt=LMMS_EVAL).max_new_tokens == longest


def test_every_preset_has_an_expected_prompt():
    assert {*EXPECTED, *OTHERS, *ASKED_AS_BY_DEFAULT, "tomato"} == PRESETS[LMMS_EVAL].keys()


def test_what_has_no_preset_is_refused(capsys):
    with pytest.raises(ConfigError, match="lmms-eval is known for egoschema, .*, not for msvc"):
        configured("msvc", prompt=LMMS_EVAL)
    with pytest.raises(ConfigError, match="not known for videomme with subtitles"):
        configured("videomme", prompt=LMMS_EVAL, subtitles="published")
    assert configured("moving_shapes", prompt="options").settings()["prompt"] == "options"
    options = ("--model-path", "videollama2-tiny", "--sampling", "fps", "--num-frames", "8")
    assert main(["run", "egoschema", *options]) == 2
    assert "--sampling fps takes its number of frames from the clip" in capsys.readouterr().err


def test_a_run_says_how_it_asked_and_can_be_scored_again(tmp_path, capsys):
    data = benchmarks_dir() / "egoschema"
    options = (
        "--model-path",
        "videollama2-tiny",
        "--device",
        "cpu",
        "--no-progress",
        "--limit",
        "2",
        "--data",
        str(data),
    )
    how = ("--prompt", LMMS_EVAL, "--sampling", "fps")
    assert main(["run", "egoschema", *options, *how, "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["prompt"] == LMMS_EVAL and report["generation"]["max_new_tokens"] == 16
    assert report["generation"]["frames_over"] == "fps" and report["frames"] is None
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])["instruction"].endswith(LETTER)
    assert main(["score", str(tmp_path), "--no-progress"]) == 0
    assert main(["show", str(tmp_path)]) == 0
    capsys.readouterr()
