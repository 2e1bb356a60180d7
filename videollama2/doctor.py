"""Runs ``videollama2 doctor``, which prints versions, devices, memory and codecs, to be included in problem reports.

The report contains no secrets: it has no keys, and only those environment variables that are in :data:`VARIABLES`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from videollama2 import __version__
from videollama2.commands import add_debug_flag
from videollama2.constants import BUILT_IN_MODELS
from videollama2.ranks import usable_cores

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "accelerate", "numpy", "pillow", "av"),
    *("sentencepiece", "peft", "bitsandbytes", "deepspeed", "flash-attn", "decord", "vllm", "ray"),
    *("gradio", "fastapi", "uvicorn", "httpx", "openai", "pyarrow"),
)
"""Packages whose versions are reported; the first ones are always required."""

VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("TRANSFORMERS_OFFLINE", "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "PYTHONPATH"),
)

DECODERS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg", "gif", "aac", "mp3", "opus")
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "TIFF", "HEIF")

_GIB = 1 << 30

Section = dict[str, Any]
"""Names of items with their values, which are printed one per line."""


def add_doctor_command(subparsers: Any) -> None:
    """Add ``doctor`` to the command line; the handler returns 1 if there is a problem."""
    parser = subparsers.add_parser("doctor", help="show versions, devices and codecs, for bug reports")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_debug_flag(parser)
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    report, problems = examine()
    if args.json:
        print(json.dumps({**report, "problems": problems}, indent=1))
    else:
        for title, section in report.items():
            print(f"{title}")
            for name, value in section.items():
                print(f"  {name:<24}{value}")
        print("problems" if problems else "problems\n  none found")
        for problem in problems:
            print(f"  {problem}")
    return 1 if problems else 0


def examine() -> tuple[dict[str, Section], list[str]]:
    """Return the sections of the report, and the list of problems."""
    problems: list[str] = []
    report = {
        "software": _software(problems),
        "processor": _processor(),
        "devices": _devices(problems),
        "media": _media(problems),
        "models": _models(problems),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    return report, problems


def _software(problems: list[str]) -> Section:
    section: Section = {
        "videollama2": f"{__version__} ({Path(__file__).parent})",
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
    }
    for name in PACKAGES:
        try:
            section[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            section[name] = "not installed"
    problems += _unmet_requirements()
    return section


def _unmet_requirements() -> list[str]:
    """Return packages that are missing or have the wrong version according to this package's metadata."""
    try:
        from packaging.requirements import Requirement

        wanted = metadata.requires("videollama2") or []
    except (ModuleNotFoundError, metadata.PackageNotFoundError):  # not installed, but run from a checkout
        return []
    problems = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed: pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version}, {requirement} is needed")
    return problems


def _processor() -> Section:
    total, free = _memory()
    return {
        "name": _processor_name(),
        "cores": f"{os.cpu_count()}, {usable_cores()} of them for this process",
        "memory": "unknown" if total is None else f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB of it free",
        "temporary folder": _room(Path(tempfile.gettempdir())),
    }


def _room(folder: Path) -> str:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return f"{folder}, {shutil.disk_usage(there).free / _GIB:.1f} GiB free"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory() -> tuple[int | None, int]:
    """Return the bytes of total and of available memory; (None, 0) if the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, 0
    sizes = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}
    return sizes.get("MemTotal"), sizes.get("MemAvailable", 0)


def _devices(problems: list[str]) -> Section:
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be imported: {error}")
        return {}
    from videollama2.checkpoints.placement import bfloat16_feature, bfloat16_gain

    section: Section = {"torch was built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"}
    if torch.version.cuda and not torch.cuda.is_available():
        problems.append("torch was built for CUDA and finds no device: see whether nvidia-smi lists one")
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        section[f"cuda:{number}"] = (
            f"{device.name}, compute capability {device.major}.{device.minor}, "
            f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB of it free"
        )
    if torch.backends.mps.is_available():
        section["mps"] = "available"
    feature = bfloat16_feature()
    half = "does not compute in bfloat16"
    if feature:
        half = f"computes in bfloat16 ({feature}), {bfloat16_gain():.1f} times as fast as in float32"
    section["cpu"] = f"{torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}, {half}"
    return section


def _media(problems: list[str]) -> Section:
    section: Section = {}
    try:
        import av
    except (ImportError, OSError) as error:
        problems.append(f"av, which reads videos, cannot be imported: {error}")
    else:
        versions = {name.removeprefix("lib"): ".".join(map(str, v)) for name, v in av.library_versions.items()}
        section["ffmpeg libraries"] = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        missing = [name for name in DECODERS if name not in av.codecs_available]
        section["decoders"] = ", ".join(name for name in DECODERS if name not in missing)
        if missing:
            problems.append(f"this build of av cannot decode {', '.join(missing)}")
    from PIL import Image

    Image.init()
    section["image formats"] = ", ".join(name for name in _IMAGE_FORMATS if name in Image.OPEN)
    return section


def _models(problems: list[str]) -> Section:
    from huggingface_hub import constants

    from videollama2.hub import built_in_folder
    from videollama2.hub_connection import why_unreachable

    built_in = [built_in_folder(name) for name in BUILT_IN_MODELS]
    for folder in built_in:
        if not (folder / "config.json").is_file():
            problems.append(f"a built-in model is not in {folder}: the installation is incomplete")
    cache = Path(constants.HF_HUB_CACHE)
    if constants.is_offline_mode():
        hub = "not asked (offline mode)"
    else:
        reason = why_unreachable(constants.ENDPOINT)
        hub = "reachable" if reason is None else f"cannot be reached ({reason})"
    names = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    return {
        "built-in models": ", ".join(map(str, built_in)),
        "hub": f"{constants.ENDPOINT}, {hub}",
        "cache": _room(cache),
        "models in the cache": ", ".join(names) or "none",
    }
