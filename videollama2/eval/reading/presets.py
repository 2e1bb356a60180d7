"""Defines the prompts of other harnesses: the same questions in another wording, with that harness's longest answer.

With ``--prompt lmms-eval``, numbers can be laid beside those of lmms-eval (version 0.7.3). Only prompt and length are
its own: answers are read as with this project's prompts, and the frames are those of the model. A length of None means
that its task names none, and the benchmark's own holds. MLVU has no preset, because the data set that lmms-eval reads
holds each question with its options in one text, whose form is not in lmms-eval's code.
"""

from __future__ import annotations

import re

from videollama2.errors import ConfigError
from videollama2.eval.items import Item, Preset
from videollama2.eval.reading.strict import LETTERS

LMMS_EVAL = "lmms-eval"
_ONLY_THE_LETTER = "Answer with the option's letter from the given choices directly."
_VIDEOMME = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option.\n"
)


def _listed(item: Item) -> str:
    """Return the question with its options below, ``A. first`` and so on."""
    options = (f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False))
    return "\n".join([str(item.question), *options])


def _letters_with_dots(item: Item) -> str:
    return f"{_listed(item)}\n{_ONLY_THE_LETTER}"


def _mvbench(item: Item) -> str:
    options = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, item.options, strict=False))
    return f"Question:{item.question}\nOption:\n{options}Only give the best option.\n"


def _videomme(item: Item) -> str:
    return f"{_VIDEOMME}{_listed(item)}\n\n{_ONLY_THE_LETTER}"


def _activitynet_qa(item: Item) -> str:
    return f"{str(item.question).capitalize()}? Answer the question using a single word or phrase."


def _lvbench(item: Item) -> str:
    return f"{item.question}\nAnswer the question with the option letter"


def _tomato(item: Item) -> str:
    # The official prompt, without the number of frames and the blank at the end of its first paragraph.
    first, rest = str(item.instruction).split(" \n", maxsplit=1)
    return "\n".join([re.sub(r"with \d+ separate frames", "with frames", first), rest])


def _as_it_is(item: Item) -> str | tuple[str, ...]:
    return item.instruction


PRESETS: dict[str, dict[str, Preset]] = {
    LMMS_EVAL: {
        "egoschema": Preset(LMMS_EVAL, _letters_with_dots, 16),
        "mvbench": Preset(LMMS_EVAL, _mvbench, 16),
        "perception_test": Preset(LMMS_EVAL, _letters_with_dots),
        "videomme": Preset(LMMS_EVAL, _videomme, 16),
        "activitynet_qa": Preset(LMMS_EVAL, _activitynet_qa, 64),
        "videochatgpt": Preset(LMMS_EVAL, _as_it_is, 1024),
        "nextqa": Preset(LMMS_EVAL, _listed),
        "tempcompass": Preset(LMMS_EVAL, _as_it_is),
        "tempcompass_captioning": Preset(LMMS_EVAL, _as_it_is),
        "longvideobench": Preset(LMMS_EVAL, _as_it_is, 32),
        "lvbench": Preset(LMMS_EVAL, _lvbench, 16),
        "charades_sta": Preset(LMMS_EVAL, _as_it_is, 50),
        "tomato": Preset(LMMS_EVAL, _tomato, 1024),
        "mmvu": Preset(LMMS_EVAL, _as_it_is, 1024),
        "videommmu": Preset(LMMS_EVAL, _as_it_is, 1024),
    }
}
"""The presets by the harness's name and the benchmark's."""


def preset(name: str, benchmark: str) -> Preset:
    """Look up a preset.

    Raises:
        ConfigError: there is no such preset for the benchmark.
    """
    found = PRESETS[name]
    if benchmark not in found:
        raise ConfigError(f"the prompt {name} is known for {', '.join(found)}, not for {benchmark}")
    return found[benchmark]
