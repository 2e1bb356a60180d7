"""The published VideoLLaMA2 code beside this package: one program for both, in a process of its own for each.

A work tree of the published repository has the same names as this package (``videollama2.model_init``, ``mm_infer``),
so a process imports the one or the other. The published code is written for CUDA with flash attention; on a CPU it runs
with the four changes that :func:`open_published` makes in memory. The work tree itself is only read.

The process of the published code does not have this package's environment: apart from :func:`make_folder`, nothing here
imports more than the standard library before a side is opened.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name
from random_model import make_random

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = "published"
OWN = "own"
Rounds = Sequence[dict[str, Any]]
"""What the processes of one side told, round by round."""
MARK = "result of this side: "
"""The beginning of the line that holds a result: libraries print to the same stream."""


class Clock:
    """Seconds of named stages: of the wall, and of the processor with all threads of this process."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.processor: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = time.perf_counter() - wall
        self.processor[name] = time.process_time() - processor


def peak_bytes() -> int:
    """Peak of the resident memory of this process, without that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


# ------------------------------------------------------------------------------------------------------ opening a side


def open_side(side: str, args: argparse.Namespace, dtype: str) -> None:
    """Make ``import videollama2`` mean the side; the published one computes in ``dtype`` on the CPU."""
    if side == PUBLISHED:
        sys.path.insert(0, args.worktree)
        open_published(dtype)
    else:
        sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(args.threads)


def open_published(dtype: str) -> None:
    """Change what keeps the published code from running on a CPU; call it before ``videollama2`` is imported.

    1. ``Tensor.half()`` gives ``dtype``, and weights are loaded in it: the code asks for float16 everywhere.
    2. ``Tensor.cuda()`` gives the tensor itself.
    3. Where a configuration asks for flash attention, the library chooses: ``sdpa`` where it has that, else its own
       formulation. The encoders ask for flash attention, which CLIP does not have in the pinned transformers.
    4. Models are loaded to the CPU (``device_map``).
    """
    import torch
    import transformers

    models: Any = transformers.PreTrainedModel
    wanted = getattr(torch, dtype)
    load, choose = models.from_pretrained.__func__, models._autoset_attn_implementation.__func__

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        return load(cls, *args, **{**kwargs, "torch_dtype": wanted, "device_map": {"": "cpu"}})

    def autoset(cls: type, config: Any, *args: Any, **kwargs: Any) -> Any:
        if config._attn_implementation_internal == "flash_attention_2":
            config._attn_implementation_internal = None
        return choose(cls, config, *args, **kwargs)

    torch.Tensor.half = lambda self: self.to(wanted)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    models.from_pretrained = classmethod(from_pretrained)
    models._autoset_attn_implementation = classmethod(autoset)


def options_of_own(dtype: str) -> dict[str, Any]:
    """Options of ``model_init`` of this package; ``int8`` is ``--load-8bit``."""
    return {"device": "cpu", **({"load_8bit": True} if dtype == "int8" else {"dtype": dtype})}


def run_side(script: str, side: str, dtype: str, args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Run a side of a comparison in a new process and return what it tells.

    Args:
        script: the file of the comparison, which is started with ``--child``.
        names: of the arguments in ``args`` that it gets.

    Raises:
        SystemExit: the process told nothing; its last lines are the message.
    """
    given = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    command = [script, args.worktree, "--child", side, dtype, "--threads", str(args.threads), *given]
    print(f"{side}, {dtype} ...", file=sys.stderr)
    fixed = {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [args.python if side == PUBLISHED else sys.executable, *command, *["--smoke"] * args.smoke],
        capture_output=True,
        text=True,
        env={**environment, **fixed},
    )
    results = [line[len(MARK) :] for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not results:
        last = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
        sys.exit(f"{last}\n{Path(script).name}: {side}, {dtype}: the process ended with {done.returncode}, see above")
    return json.loads(results[-1])


# ------------------------------------------------------------------------------------------------------ a common folder


def make_folder(source: str, folder: Path, aspect_ratio: str | None = None) -> None:
    """Write the checkpoint ``source`` into ``folder`` in the published form, such that both sides read it offline.

    The published code finds the vision encoder by a path with ``clip`` in it and reads the tokenizer's slow form. With
    ``aspect_ratio``, this package reads frames so; the published code is told it by an argument.
    """
    sys.path.insert(0, str(ROOT / "scripts"))
    from convert_checkpoint import convert

    from videollama2.checkpoints import load_checkpoint

    convert(source, str(folder), "published")
    model, processor = load_checkpoint(source, dtype="bfloat16")
    assert processor.image_processor is not None and model.config.vision_config is not None
    tower = folder / "clip-encoder"
    model.config.vision_config.save_pretrained(tower)
    processor.image_processor.save_pretrained(tower)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields["mm_vision_tower"] = str(tower)
    if aspect_ratio is not None:
        fields |= {"image_aspect_ratio": aspect_ratio, "mm_inference_aspect_ratio": aspect_ratio}
    (folder / "config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")
    _write_slow_tokenizer(folder)


def _write_slow_tokenizer(folder: Path) -> None:
    """Write Qwen2's slow tokenizer, and merges in ``tokenizer.json`` as the pinned tokenizers reads them."""
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    whole["model"]["merges"] = merges
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    fields = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in whole["added_tokens"]
        },
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "bos_token": None,
        "chat_template": template,
        "model_max_length": 32768,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ both sides


def add_sides(
    parser: argparse.ArgumentParser, rounds: int, layers: int, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Add what every comparison is told of both sides, with these defaults, and parse the command line."""
    parser.add_argument("worktree", metavar="WORKTREE", help="a checkout of the published code")
    parser.add_argument("--python", help="the interpreter that has the published code's requirements")
    parser.add_argument("--rounds", type=int, default=rounds, help="of both sides (default %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--layers", type=int, default=layers, help="of decoder and of encoder (default %(default)s; 24: all)"
    )
    parser.add_argument("--model", type=Path, help="where the random model is kept and found again")
    parser.add_argument("--smoke", action="store_true", help="the built-in model: whether everything runs")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child is None and args.python is None:
        parser.error("--python is missing: the interpreter that has the published code's requirements")
    if not (Path(args.worktree) / "videollama2" / "mm_utils.py").is_file():
        parser.error(f"{args.worktree} is not a work tree of the published code: it has no videollama2/mm_utils.py")
    return args


def run_comparison(
    args: argparse.Namespace,
    child: Callable[[str, str, argparse.Namespace], dict[str, Any]],
    compare: Callable[[argparse.Namespace], int],
    aspect_ratio: str | None = None,
) -> int:
    """Be a side, if this is its process; else make what both sides read, and compare. Returns the exit code."""
    if args.child is not None:
        side, dtype = args.child
        print("\n" + MARK + json.dumps(child(side, dtype, args)), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.model = args.model or folder / "published-form"
        if "data" in args:
            args.data = args.data or folder / "data"
        if not (args.model / "config.json").is_file():
            print("building the model ...", file=sys.stderr)
            if not args.smoke:
                make_random(folder / "native", layers=args.layers)
            make_folder("videollama2-tiny" if args.smoke else str(folder / "native"), args.model, aspect_ratio)
        print(f"{processor_name()}, {args.threads} threads, {args.rounds} rounds")
        print("the built-in model" if args.smoke else f"a random model, {args.layers} layers of decoder and encoder")
        return compare(args)


def equal_texts(published: Rounds, own: Rounds, names: Sequence[str] | None = None) -> tuple[int, int]:
    """How many answers of how many are the same text, of those with these names or of all."""
    pairs = [
        (theirs["answers"][name], ours["answers"].get(name))
        for theirs, ours in zip(published, own, strict=True)
        for name in names or theirs["answers"]
    ]
    return sum(a == b for a, b in pairs), len(pairs)


class Row(NamedTuple):
    """A line of a table: medians of both sides, ratios of seconds and of processor seconds, and the goal."""

    name: str
    published: float
    own: float
    ratio: float
    of_processor: float
    goal: float | None = None
    at_most: bool = False

    @classmethod
    def of_seconds(cls, name: str, published: Rounds, own: Rounds, goal: float | None = None) -> Row:
        """How many times longer the published code takes for a stage: the median over pairs of rounds."""
        pairs = list(zip(published, own, strict=True))
        ratios = [
            statistics.median(theirs[kind][name] / max(ours[kind][name], 1e-9) for theirs, ours in pairs)
            for kind in ("wall", "processor")
        ]
        theirs, ours = (statistics.median(each["wall"][name] for each in side) for side in (published, own))
        return cls(name, theirs, ours, ratios[0], ratios[1], goal)

    @classmethod
    def of_memory(cls, name: str, published: Rounds, own: Rounds, goal: float | None = None) -> Row:
        """The share of the published code's memory that this package takes."""
        theirs, ours = (statistics.median(each["memory"] for each in side) / 2**30 for side in (published, own))
        return cls(name, theirs, ours, ours / theirs, ours / theirs, goal, at_most=True)

    @property
    def verdict(self) -> str:
        """Whether the goal is met: by processor seconds, which other work on the machine distorts less."""
        if self.goal is None:
            return ""
        met = self.of_processor <= self.goal if self.at_most else self.of_processor >= self.goal
        return f"{'at most' if self.at_most else 'at least'} {self.goal:g}: {'met' if met else 'MISSED'}"


def lines_of(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table."""
    lines = [_line("", "published, s", "own, s", "ratio", "of processor", "goal")]
    for row in rows:
        sign = "" if row.at_most else "x"
        ratios = [f"{value:.2f}{sign}" for value in (row.ratio, row.of_processor)]
        lines.append(_line(row.name, f"{row.published:.2f}", f"{row.own:.2f}", *ratios, row.verdict))
    return lines


def _line(name: str, *cells: str) -> str:
    *numbers, last = cells
    return (f"  {name:24}" + "".join(f"{cell:>14}" for cell in numbers) + f"   {last}").rstrip()
