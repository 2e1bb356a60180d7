"""Counts the memory of a GPU and the time of a step for each way of training a model.

The largest memory of a step is that at the end of the forward pass, when activations are complete, that at the end of
the backward pass, when gradients are, or that of the optimizer's step where it needs copies of gradients. Not counted
are the allocator's fragments and CUDA's own memory (about 1 GB).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from videollama2.config import VideoLlama2Config
from videollama2.model.connectors import tokens_of_clip
from videollama2.model.loss import CHUNK
from videollama2.training.distributed.fully_shard import layers_of
from videollama2.training.plan.counted_model import CountedModel, Matrices, Precision
from videollama2.training.reports.meter import BatchCounts, FlopCount

UTILISATION = 0.4
"""Share of a GPU's peak that a step is assumed to reach; large decoders on one node reach 0.35 to 0.5."""
_NF4 = 0.516
"""Bytes of a weight in 4 bits, with the constants of double quantisation."""
_GATHERED = 10**9
"""Numbers that ZeRO-3 gathers at most, and updates at a time: DeepSpeed's defaults, which scripts/zero3.json keeps."""


@dataclass(frozen=True)
class Way:
    """A way of training.

    Attributes:
        lora: rank of LoRA matrices at all linear layers of ``parts``; 0 if the weights themselves learn.
        quantised: whether the decoder's own weights have 4 bits.
        zero: stage of ZeRO, configured as in scripts/zero2.json and scripts/zero3.json.
        recompute: whether every layer computes its activations again in the backward pass.
        half: whether the step computes in bfloat16.
        parts: those of ``--lora_parts``.
        dropout: whether LoRA has dropout, as by default.
        fully_shard: whether weights are cut into slices by FSDP2 (``--fully_shard``).
        connector_alone: whether the decoder is frozen, as in the first stage (``--tune_mm_mlp_adapter``).
    """

    name: str
    lora: int = 0
    quantised: bool = False
    zero: int = 0
    recompute: bool = False
    half: bool = True
    parts: tuple[str, ...] = ("language_model",)
    dropout: bool = True
    fully_shard: bool = False
    connector_alone: bool = False

    @property
    def precision(self) -> Precision:
        """How the step computes. DeepSpeed and FSDP2 give it a model of 16 bits, others use autocast."""
        if not self.half:
            return "float32"
        return "bfloat16" if self.zero or self.fully_shard else "autocast"


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
        gradients: those of all weights, with the activations of the block whose backward pass comes last; or what the
            optimizer's step makes of them, if that is larger.
        buffers: weights that are gathered from other GPUs, and DeepSpeed's buckets.
    """

    weights: float
    optimizer: float
    gradients: float
    activations: float
    buffers: float = 0.0

    @property
    def peak(self) -> float:
        return self.weights + self.optimizer + self.buffers + max(self.activations, self.gradients)


class Planner:
    """Counts for one model.

    Args:
        config: the model's configuration. The connector and the decoder learn; the encoders are frozen, except for LoRA
            matrices in them.
    """

    def __init__(self, config: VideoLlama2Config) -> None:
        self.config = config
        self._models: dict[tuple[Any, ...], CountedModel] = {}
        model = self._plain.model
        self.total = sum(p.numel() for p in model.parameters())
        decoder = model.model.language_model.modules()
        self.linear = sum(module.weight.numel() for module in decoder if isinstance(module, nn.Linear))

    @cached_property
    def _plain(self) -> CountedModel:
        return self._model(Way("all weights"))

    def _model(self, way: Way) -> CountedModel:
        key = way.precision, way.lora, way.parts, way.connector_alone
        if key not in self._models:
            matrices = Matrices(way.lora, frozenset(way.parts)) if way.lora else None
            self._models[key] = CountedModel(self.config, way.precision, matrices, way.connector_alone)
        return self._models[key]

    def memory(self, way: Way, load: Load) -> Memory:
        """Return the memory of one GPU for a step of ``load`` in this way.

        Raises:
            MissingDependencyError: it is a way with LoRA, and peft is not installed.
        """
        counted = self._model(way)
        activations, last = self._activations(way, load)
        activations += self._head(counted, load)
        learning, low = counted.learning, 2 if way.half else 4
        frozen = counted.total - learning
        weights = (frozen - self.linear) * low + self.linear * _NF4 if way.quantised else frozen * low
        if way.zero:
            return self._zero(way, load, (weights, activations, last))
        if way.fully_shard:
            return self._fully_sharded(way, load, (activations, last))
        # DDP copies gradients into its buckets.
        gradients = learning * 4 * (2 if load.gpus > 1 else 1)
        return Memory(weights + learning * 4, 8 * learning, gradients + last, activations)

    def _zero(self, way: Way, load: Load, plain: tuple[float, float, float]) -> Memory:
        """Return the memory under ZeRO.

        Args:
            plain: bytes of frozen weights, of activations and of those of the last block.
        """
        frozen, activations, last = plain
        counted, low = self._model(way), 2 if way.half else 4
        # The engine's own weights and gradients have 16 bits; it keeps weights of 32 bits for the optimizer. 12 bytes:
        # the weight itself and both moments of Adam, 32 bits each.
        weights, part = frozen + counted.learning * low, counted.learning / load.gpus
        bucket = self.config.hidden_size**2 * low
        if way.zero == 3:
            gathered = min(counted.total, _GATHERED) * low
            stepping = part * low + 4 * min(part, _GATHERED)
            return Memory(
                weights / load.gpus,
                12 * part,
                max(part * low + last, stepping),
                activations,
                gathered + bucket,
            )
        # Two buckets, since communication overlaps; a gradient that is larger than a bucket is reduced by itself. The
        # step makes the gradients contiguous, and then 32 bits wide.
        largest = max(p.numel() for p in counted.model.parameters() if p.requires_grad) * low
        gradients = max(part * low + max(last, largest), part * (2 * low + 4))
        return Memory(weights, 12 * part, gradients, activations, 2 * bucket)

    def _fully_sharded(self, way: Way, load: Load, plain: tuple[float, float]) -> Memory:
        """Return the memory under FSDP2.

        Args:
            plain: bytes of activations and of those of the last block.
        """
        activations, last = plain
        counted, low = self._model(way), 2 if way.half else 4
        layers = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(counted.model)]
        # What is in no layer is gathered for the whole step. Of layers, the next one is gathered while one computes.
        root = counted.total - sum(layers)
        gathered = (root + 2 * max(layers)) * low
        part = counted.learning / load.gpus
        # Gradients of what was gathered exist whole, and are reduced in 32 bits.
        gradients = part * 4 + max(root, *layers) * (low + 4 if way.half else low)
        return Memory(counted.total * 4 / load.gpus, 8 * part, gradients + last, activations, gathered)

    def seconds(self, way: Way, load: Load, peak_flops: float) -> float:
        """Return the seconds of a step, without waiting and communication."""
        clips = load.records * load.clips
        visual = self.visual * clips
        counts = BatchCounts(
            samples=clips,
            visual_tokens=visual,
            text_tokens=load.records * load.tokens - visual,
            frames=clips * self.config.num_frames if self.config.sees else 0,
            labels=load.records * load.tokens - visual,
        )
        operations = FlopCount(self._model(way).model).of_step(counts)
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
        return tokens_of_clip(config, config.num_frames)

    def _activations(self, way: Way, load: Load) -> tuple[float, float]:
        """Return the bytes that are kept at the end of the forward pass, and those of the largest block."""
        counted = self._model(way)
        work = load.records, load.tokens, load.records * load.clips
        whole = counted.kept(*work, recompute=False)
        # With recomputation, the backward pass computes one block again at a time; the largest one is what comes on
        # top.
        last = max(whole.connector, whole.layers / self.config.text_config.num_hidden_layers)
        if way.recompute:
            # autocast keeps the copies of weights until the forward pass ends, the graph would keep them longer.
            return counted.kept(*work, recompute=True).sum + 2 * counted.copied, last
        # Dropout keeps a byte for each number that goes into a matrix of the decoder.
        masks = load.records * load.tokens * counted.into_matrices if way.dropout else 0
        return whole.sum + masks, last

    def _head(self, counted: CountedModel, load: Load) -> float:
        """Return the bytes of the output layer's loss: logits of a chunk with their gradient, and gradients so far."""
        width, words, weight = self.config.hidden_size, self.config.text_config.vocab_size, counted.model.lm_head.weight
        low = 4 if counted.precision == "float32" else 2
        labels = load.records * (load.tokens - self.visual * load.clips)
        # The hidden states of the labelled positions and their gradients.
        kept = 2 * labels * width * counted.stream_size
        if weight.element_size() != low:
            kept += words * width * low  # the weight in the precision of the product
        # Logits of 32 bits and those that they were made of, or their gradient and what it is rounded to.
        logits = min(labels, CHUNK) * words
        chunk = logits * (8 if low == 4 else 10)
        if weight.requires_grad:
            # The gradient of a chunk is added to those of the chunks before.
            chunk = max(chunk, logits * (4 + low) + words * width * low)
            kept += words * width * (4 if labels > CHUNK else weight.element_size())
        return kept + chunk
