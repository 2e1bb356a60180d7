"""Where the reference annotation sets lie: ``../shared/benchmarks`` where there, else the copy in tests/."""

import json
import re
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, golden_audio_dir

_CANDIDATES = (ROOT.parent / "shared" / "benchmarks", ROOT / "tests" / "benchmarks")


def benchmarks_dir() -> Path:
    for folder in _CANDIDATES:
        if (folder / "expected" / "instructions.json").is_file():
            return folder
    raise FileNotFoundError(f"no reference data in {' or '.join(map(str, _CANDIDATES))}")


def cases_dir() -> Path:
    """Inputs that once were read wrongly: ``../shared/cases/eval`` where there, else the copy in tests/."""
    folder = ROOT.parent / "shared" / "cases" / "eval"
    return folder if folder.is_dir() else ROOT / "tests" / "eval" / "cases"


def expected(name):
    path = benchmarks_dir() / "expected" / name
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text


def unpadded(text):
    """Tables without the blanks that line their columns up."""
    return re.sub(r" {2,}", " ", text)


AUDIO_SETS = golden_audio_dir() / "benchmarks_audio"
"""The benchmarks of sounds, in the published layout, and what the published code makes of them."""


def expected_of_sounds(name: str) -> Any:
    """What the published code makes of the benchmarks of sounds, by file."""
    return json.loads((AUDIO_SETS / "expected" / name).read_text(encoding="utf-8"))
