"""What tests of the kernels for CPUs share."""

import pytest
from torch.profiler import ProfilerActivity, profile

from videollama2.inference import kernels
from videollama2.model import linear

needs_kernels = pytest.mark.skipif(not linear.kernels_available(), reason="torch has no MKL or no oneDNN here")

ONEDNN = "mkldnn::_linear_pointwise"
"""The operation with which oneDNN multiplies."""


def operations(work):
    """Return what ``work`` returns, and the names of the operations of torch that it computed."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        result = work()
    return result, {event.name for event in profiled.events() or ()}


def pretend_processor(monkeypatch, has_fast_mkl):
    """Choose the kernels of a processor of Intel, or of another."""
    for module in (linear, kernels):
        monkeypatch.setattr(module, "has_fast_mkl", lambda: has_fast_mkl)


def lower_limits(monkeypatch):
    """Let layers of any size be computed as those that are read from memory."""
    for limit in ("SMALLEST_PACKED", "_SMALLEST", "_SMALLEST_WITH_LARGE"):
        monkeypatch.setattr(linear, limit, 1)
