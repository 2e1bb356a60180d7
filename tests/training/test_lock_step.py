"""benchmarks/lock_step.py: what ranks in lock step take, by counting, at a published model's shapes."""

import argparse
import importlib.util
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def lock_step():
    spec = importlib.util.spec_from_file_location("benchmark_lock_step", ROOT / "benchmarks" / "lock_step.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_savings_at_the_shapes_of_mistral_7b(lock_step):
    costs = lock_step.Costs(lock_step.MODELS["CLIP, 8 frames, stc_connector, Mistral-7B"])
    assert costs.visual == 845
    assert costs.still / 1e12 == pytest.approx(0.452, abs=1e-3)
    records = lock_step.draw(4000, costs.visual)
    floor = costs.of(records, None, lock_step.StepSettings()) / len(records)
    assert floor / 1e12 == pytest.approx(45.2, rel=0.02)
    args = argparse.Namespace(ranks=8, batch=4, row_tokens=4096)
    ways = lock_step.ROWS
    measured = {name: lock_step.measure(records, costs, way, args) for name, way in ways.items()}
    computed, waiting = ({name: values[i] / floor for name, values in measured.items()} for i in (0, 1))
    assert computed["version 0.1's scripts"] == pytest.approx(1.72, abs=0.05)
    assert waiting["version 0.1's scripts"] > 2.2
    assert waiting["+ no recomputing"] < 1.15
    assert computed["packed rows, no recomputing"] == pytest.approx(1.0, abs=1e-9)
    assert list(waiting.values())[:5] == sorted(list(waiting.values())[:5], reverse=True)
