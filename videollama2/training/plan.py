"""``videollama2 plan``: which ways of training a model fit into a GPU's memory, and how long a step takes, by counting.

The model is built without weights (fake tensors), and its decoder and connector run forward as in training, so that
what autograd would keep for the backward pass can be counted instead of estimated. The largest memory of a step is that
at the end of the forward pass, when activations are complete, or that at the end of the backward pass, when gradients
are. Not counted are the allocator's fragments, CUDA's own memory (about 1 GB) and the buffers of communication.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.initialization import no_init_weights

from videollama2.checkpoints import resolve_name
from videollama2.commands import add_debug_flag
from videollama2.config import VideoLlama2Config, is_videollama2
from videollama2.constants import DEFAULT_MODEL_NAME
from videollama2.errors import ConfigError
from videollama2.flags import PATH_HELP
from videollama2.hub import read_config
from videollama2.model.connectors import num_visual_tokens
from videollama2.model.loss import CHUNK
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.meter import PEAK_FLOPS, Counts, FlopCount

UTILISATION = 0.4
"""Share of a GPU's peak that a step is assumed to reach; large decoders on one node reach 0.35 to 0.5."""
_NF4 = 0.516
"""Bytes of a weight in 4 bits, with the constants of double quantisation."""


@dataclass(frozen=True)
class Way:
    """A way of training.

    Attributes:
        lora: rank of LoRA matrices at all linear layers of the decoder; 0 if the weights themselves learn.
        quantised: whether these weights have 4 bits.
        zero: stage of ZeRO.
        recompute: whether every layer computes its activations again in the backward pass.
        half: whether the step computes in bfloat16.
    """

    name: str
    lora: int = 0
    quantised: bool = False
    zero: int = 0
    recompute: bool = False
    half: bool = True


@dataclass(frozen=True)
class Load:
    """The work of a GPU in a step.

    Attributes:
        records: number of records or packed rows.
        tokens: tokens of each, visual ones of its clips included.
        clips: clips of each; a packed row has one of each record in it.
    """

    records: int
    tokens: int
    gpus: int = 1
    clips: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU.

    Attributes:
        activations: those kept at the end of the forward pass, with what the output layer needs.
        gradients: those of all weights, with the activations of the block whose backward pass comes last.
    """

    weights: float
    optimizer: float
    gradients: float
    activations: float

    @property
    def peak(self) -> float:
        return self.weights + self.optimizer + max(self.activations, self.gradients)


class Planner:
    """Counts for one model.

    Args:
        config: the model's configuration. The connector and the decoder learn, the encoders are frozen.
    """

    def __init__(self, config: VideoLlama2Config) -> None:
        self.config = config
        self._kept: dict[tuple[Load, bool, bool], tuple[float, float]] = {}
        # Initial values are not needed, and some of them depend on the values of others, which there are none of.
        with FakeTensorMode(allow_non_fake_inputs=True) as self.mode, no_init_weights():
            self.model = VideoLlama2ForConditionalGeneration(config)
        inner = self.model.model
        for tower in (inner.vision_tower, inner.audio_tower, inner.mm_projector_a):
            if tower is not None:
                tower.requires_grad_(False)
        linear = [m for m in inner.language_model.modules() if isinstance(m, nn.Linear)]
        self.linear = sum(module.weight.numel() for module in linear)
        self.lora_of_rank = sum(module.in_features + module.out_features for module in linear)
        self.total = sum(p.numel() for p in self.model.parameters())
        connector = inner.mm_projector
        self.connector = 0 if connector is None else sum(p.numel() for p in connector.parameters())
        self.learning = sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def memory(self, way: Way, load: Load) -> Memory:
        """Return the memory of one GPU for a step of ``load`` in this way."""
        learning = self.connector + way.lora * self.lora_of_rank if way.lora else self.learning
        frozen = self.total - (self.connector if way.lora else self.learning)
        quantised = self.linear if way.quantised else 0
        sliced = load.gpus
        low = 2 if way.half else 4
        weights = (frozen - quantised) * low + quantised * _NF4
        if way.zero:
            # The engine's own weights and gradients have 16 bits; it keeps weights of 32 bits for the optimizer.
            weights = (weights + learning * low) / (sliced if way.zero == 3 else 1)
            # 12 bytes: the weight itself and both moments of Adam, 32 bits each.
            gradients, optimizer = learning * low / sliced, 12 * learning / sliced
        else:
            # Autocast keeps 16-bit copies of the weights that learn; DDP copies gradients into its buckets.
            weights += learning * (4 + (low if way.half else 0))
            gradients, optimizer = learning * 4 * (2 if load.gpus > 1 else 1), 8 * learning
        kept, last = self._activations(way, load)
        return Memory(weights, optimizer, gradients + last, kept + self._head(way, load))

    def seconds(self, way: Way, load: Load, peak_flops: float) -> float:
        """Return the seconds of a step, without waiting and communication."""
        clips = load.records * load.clips
        visual = self.visual * clips
        counts = Counts(
            samples=clips,
            visual_tokens=visual,
            text_tokens=load.records * load.tokens - visual,
            frames=clips * self.config.num_frames if self.config.sees else 0,
            labels=load.records * load.tokens - visual,
        )
        flops = FlopCount(self.model)
        operations = flops.of_step(counts)
        if way.lora:  # the decoder's own weights need no gradients, the connector below them needs theirs
            operations -= 2 * self.linear * load.records * load.tokens
        if way.recompute:
            operations += 2 * self.linear * load.records * load.tokens
        return operations / (peak_flops * UTILISATION)

    # --------------------------------------------------------------------------------------------- activations

    @property
    def visual(self) -> int:
        """Number of visual tokens of a clip."""
        config = self.config
        if not config.sees:
            return 0
        return num_visual_tokens(
            config.mm_projector_type, config.num_frames, config.patches_per_side, config.keeps_class_token
        )

    def _activations(self, way: Way, load: Load) -> tuple[float, float]:
        """Return the bytes that are kept at the end of the forward pass, and those of the largest block."""
        connector, layers = self._counted(load, False, way.half)
        # With recomputation, the backward pass computes one block again at a time; the largest one is what comes on
        # top.
        last = max(connector, layers / self.config.text_config.num_hidden_layers)
        if way.recompute:
            return sum(self._counted(load, True, way.half)), last
        lora = way.lora * load.records * load.tokens * 4 * self._layers_with_lora if way.lora else 0
        return connector + layers + lora, last

    def _counted(self, load: Load, recompute: bool, half: bool) -> tuple[float, float]:
        key = (load, recompute, half)
        if key not in self._kept:
            with self.mode, torch.autocast("cpu", torch.bfloat16, enabled=half):
                self._kept[key] = self._count(load, recompute)
        return self._kept[key]

    @property
    def _layers_with_lora(self) -> int:
        return sum(isinstance(module, nn.Linear) for module in self.model.model.language_model.modules())

    def _count(self, load: Load, recompute: bool) -> tuple[float, float]:
        """Return the bytes that autograd keeps of the connector, for all clips, and of the decoder."""
        inner, config = self.model.model, self.config
        of_connector = 0.0
        if inner.mm_projector is not None:
            clips = (load.records * load.clips, config.num_frames, config.patches_per_side**2, config.mm_hidden_size)
            with kept_by_autograd(self.model) as kept:
                _run(inner.mm_projector, recompute)(torch.empty(clips))
            of_connector = kept()
        layers = cast("Any", inner.language_model).layers
        for layer in layers:
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = recompute, _again
        embeds_BLD = torch.empty(load.records, load.tokens, config.hidden_size, requires_grad=True)
        with kept_by_autograd(self.model) as kept:
            inner.language_model.train()(inputs_embeds=embeds_BLD, use_cache=False)
        return of_connector, kept()

    def _head(self, way: Way, load: Load) -> float:
        """Return the bytes of the output layer's loss: logits of a chunk with their gradient, and gradients so far."""
        width, words = self.config.hidden_size, self.config.text_config.vocab_size
        labels = load.records * (load.tokens - self.visual * load.clips)
        logits = min(labels, CHUNK) * words * (10 if way.half else 8)
        return logits + labels * width * 4 + (0 if way.lora else words * width * 4)


def _run(module: nn.Module, recompute: bool) -> Callable[..., Any]:
    return (lambda *args: _again(module.__call__, *args)) if recompute else module


def _again(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


@contextmanager
def kept_by_autograd(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Give a function that returns the bytes of what autograd has kept in the block, weights left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            # By storage: views of one tensor are kept once, and weights are counted elsewhere.
            found[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: float(sum(storage.nbytes() for storage in found.values()))


# ---------------------------------------------------------------------------------------------------- command

WAYS = (
    Way("all weights"),
    Way("all weights, recomputed", recompute=True),
    Way("all weights, ZeRO-2, recomputed", zero=2, recompute=True),
    Way("all weights, ZeRO-3", zero=3),
    Way("all weights, ZeRO-3, recomputed", zero=3, recompute=True),
    Way("LoRA 64", lora=64),
    Way("LoRA 64, recomputed", lora=64, recompute=True),
    Way("QLoRA 64", lora=64, quantised=True),
    Way("QLoRA 64, recomputed", lora=64, quantised=True, recompute=True),
)

_WIDTHS = (9, 11, 11, 13, 8, 9)


def add_plan_command(subparsers: Any) -> None:
    """Add ``plan`` to the command line."""
    parser = subparsers.add_parser("plan", help="which ways of training a model fit into a GPU, by counting")
    parser.add_argument("--model", required=True, help=f"a checkpoint: {PATH_HELP}, such as {DEFAULT_MODEL_NAME}")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="number of GPUs (default: %(default)s)")
    parser.add_argument("--memory", type=float, default=80, metavar="GB", help="of a GPU (default: %(default)s)")
    parser.add_argument("--gpu", choices=sorted(PEAK_FLOPS), default="H100", help="its kind (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="records at a time (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=2048, metavar="N", help="of a record or packed row (default: %(default)s)"
    )
    parser.add_argument(
        "--clips", type=int, default=1, metavar="N", help="clips of a record or packed row (default: %(default)s)"
    )
    add_debug_flag(parser)
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    for name in ("gpus", "memory", "batch", "tokens", "clips"):
        if getattr(args, name) <= 0:
            raise ConfigError(f"--{name} {getattr(args, name)} is not above 0")
    path = resolve_name(args.model)
    if not is_videollama2(read_config(path)):  # read_config says in one line where there is none
        raise ConfigError(f"--model {args.model} is no VideoLLaMA 2 checkpoint")
    config = VideoLlama2Config.from_pretrained(path)
    planner, load = Planner(config), Load(args.batch, args.tokens, args.gpus, args.clips)
    if args.tokens <= planner.visual * args.clips:
        raise ConfigError(f"--tokens {args.tokens} has no room for text: a clip has {planner.visual} of them")
    each = "a clip" if args.clips == 1 else f"{args.clips} clips"
    print(f"{args.model}: {planner.total:,} weights; {args.batch} records of {args.tokens} tokens, each with {each}")
    heads = zip(("weights", "optimizer", "gradients", "activations", "peak", "s/step"), _WIDTHS, strict=True)
    print(f"{'GB of each GPU':<34}" + "".join(f"{head:>{width}}" for head, width in heads))
    for way in WAYS:
        found = planner.memory(way, load)
        parts = (found.weights, found.optimizer, found.gradients, found.activations, found.peak)
        values = (*(part / 1e9 for part in parts), planner.seconds(way, load, PEAK_FLOPS[args.gpu]))
        cells = "".join(f"{value:>{width}.3g}" for value, width in zip(values, _WIDTHS, strict=True))
        print(f"{way.name:<34}{cells}  {'fits' if found.peak < args.memory * 1e9 else 'too large'}")
    print(f"Seconds: at {UTILISATION:.0%} of the peak of {args.gpu}, without waiting for other GPUs or for data.")
    print("Bytes: without fragments, CUDA's own memory and buffers of communication.")
    return 0
