"""Shared fixtures. Reference values come from ``../shared/golden`` when it is there, else from the copy in tests/."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a missing local path must fail at once, not after retries
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

ROOT = Path(__file__).resolve().parent.parent
_CANDIDATES = (ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden")


def golden_dir() -> Path:
    """Folder of the reference values computed by the published code."""
    for folder in _CANDIDATES:
        if (folder / "summary.json").is_file():
            return folder
    raise FileNotFoundError(f"no reference data in {' or '.join(map(str, _CANDIDATES))}")


@pytest.fixture(scope="session")
def golden() -> Path:
    return golden_dir()
