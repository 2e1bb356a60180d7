"""Lists the benchmarks, each in a small file. To add one, add a file and a line in :data:`BENCHMARKS`.

Third parties add benchmarks without changing this package, with an entry point of the group ``videollama2.benchmarks``
whose value is a subclass of :class:`videollama2.eval.items.Benchmark`, or an instance.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError
from videollama2.eval.items import Benchmark
from videollama2.eval.reading.presets import PRESETS, preset
from videollama2.eval.report.paper_numbers import canonical_benchmark

ENTRY_POINT_GROUP = "videollama2.benchmarks"

BENCHMARKS = {
    "egoschema": "videollama2.eval.benchmarks.egoschema:EgoSchema",
    "mvbench": "videollama2.eval.benchmarks.mvbench:MVBench",
    "perception_test": "videollama2.eval.benchmarks.perception_test:PerceptionTest",
    "videomme": "videollama2.eval.benchmarks.videomme:VideoMME",
    "activitynet_qa": "videollama2.eval.benchmarks.activitynet_qa:ActivityNetQA",
    "msvd_qa": "videollama2.eval.benchmarks.msvd_qa:MSVDQA",
    "msvc": "videollama2.eval.benchmarks.msvc:MSVC",
    "videochatgpt": "videollama2.eval.benchmarks.videochatgpt:VideoChatGPT",
    "mlvu": "videollama2.eval.benchmarks.mlvu:MLVU",
    "nextqa": "videollama2.eval.benchmarks.nextqa:NExTQA",
    "tempcompass": "videollama2.eval.benchmarks.tempcompass:TempCompass",
    "tempcompass_captioning": "videollama2.eval.benchmarks.tempcompass_captioning:TempCompassCaptioning",
    "longvideobench": "videollama2.eval.benchmarks.longvideobench:LongVideoBench",
    "lvbench": "videollama2.eval.benchmarks.lvbench:LVBench",
    "charades_sta": "videollama2.eval.benchmarks.charades_sta:CharadesSTA",
    "star": "videollama2.eval.benchmarks.star:STAR",
    "tomato": "videollama2.eval.benchmarks.tomato:TOMATO",
    "mmvu": "videollama2.eval.benchmarks.mmvu:MMVU",
    "videommmu": "videollama2.eval.benchmarks.videommmu:VideoMMMU",
    "vocalsound": "videollama2.eval.benchmarks.vocalsound:VocalSound",
    "tut2017": "videollama2.eval.benchmarks.tut2017:TUT2017",
    "clotho_aqa": "videollama2.eval.benchmarks.clotho_aqa:ClothoAQA",
    "clotho": "videollama2.eval.benchmarks.clotho:Clotho",
    "music_avqa": "videollama2.eval.benchmarks.music_avqa:MusicAVQA",
    "avsd": "videollama2.eval.benchmarks.avsd:AVSD",
    "vggsound": "videollama2.eval.benchmarks.vggsound:VGGSound",
    "moving_shapes": "videollama2.eval.benchmarks.moving_shapes:MovingShapes",
    "sounding_shapes": "videollama2.eval.benchmarks.sounding_shapes:SoundingShapes",
}


def names() -> list[str]:
    """Return the names of all benchmarks; those of other packages come last."""
    return [*BENCHMARKS, *sorted(set(_plug_ins()) - set(BENCHMARKS))]


def benchmark(name: str) -> Benchmark:
    """Look up a benchmark by its name, its folder's name (``MSVD_Zero_Shot_QA``) or another spelling (``msvd-qa``).

    A path of a file of questions gives the benchmark of that file, see
    :mod:`videollama2.eval.benchmarks.questions_file`.

    Raises:
        ConfigError: there is no such benchmark, or its entry point cannot be used.
    """
    if name.lower().endswith((".jsonl", ".json")):
        from videollama2.eval.benchmarks.questions_file import QuestionsFile

        return QuestionsFile(Path(name))
    if name not in BENCHMARKS:
        plug_ins = _plug_ins()
        if name in plug_ins:
            return _from_entry_point(plug_ins[name])
    wanted = _plain(canonical_benchmark(name))
    for known, place in BENCHMARKS.items():
        if wanted == _plain(known):
            module, _, attribute = place.partition(":")
            return getattr(import_module(module), attribute)()
    raise ConfigError(f"there is no benchmark {name!r}; there are {', '.join(names())}")


def configured(name: str, **settings: Any) -> Benchmark:
    """Look up a benchmark with its options, of which ``prompt`` may be one of :mod:`videollama2.eval.reading.presets`.

    Raises:
        ConfigError: as :func:`benchmark`, :meth:`Benchmark.configure` and :meth:`Benchmark.with_preset`.
    """
    prompt = settings.get("prompt")
    if prompt not in PRESETS:
        return benchmark(name).configure(**settings)
    found = benchmark(name).configure(**{**settings, "prompt": None})
    return found.with_preset(preset(prompt, found.name))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _from_entry_point(point: EntryPoint) -> Benchmark:
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"benchmark {point.name!r} of {point.value} cannot be imported ({error})") from error
    found = loaded() if isinstance(loaded, type) else loaded
    if not isinstance(found, Benchmark):
        raise ConfigError(
            f"benchmark {point.name!r}: {point.value} is a {type(found).__name__}, not a subclass or an instance of "
            "videollama2.eval.items.Benchmark"
        )
    return found
