"""Answers the requests of lmms-eval and computes their log-likelihoods, with this package's engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from videollama2.constants import TINY_MODEL_NAME
from videollama2.engines import MAX_NEW_TOKENS
from videollama2.engines.fitting import fitting_answers
from videollama2.errors import ConfigError, MediaError
from videollama2.inference.api import model_init
from videollama2.inference.engine import Engine
from videollama2.inference.media.reader import read_part
from videollama2.inference.request import Request
from videollama2.media.kinds import AUDIO, IMAGE
from videollama2.media.sources import kind_of_path
from videollama2.media.wave import wav_bytes

_SAMPLING = ("top_p", "top_k", "min_p")


class VideoLlama2(lmms):
    """The model on this package's engine.

    Args:
        pretrained: ``videollama2-tiny``, a folder or a hub name.
        batch_size: maximum number of requests that run at the same time; lmms-eval's default of 1 leaves the choice to
            the engine, whose answers do not depend on it.
        num_frames: frames per video; None for the checkpoint's.
        max_length: maximum length of prompt and answer together; None for the engine's choice.
        device, dtype, model_base, load_8bit, load_4bit: see :func:`videollama2.model_init`.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = TINY_MODEL_NAME,
        batch_size: int | str = 1,
        num_frames: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if device in (None, "cuda"):
            device = str(self.accelerator.device)
        self._model, self._processor, self._tokenizer = model_init(pretrained, device=device, **options)
        wanted = max_batch_size if batch_size == "auto" else int(batch_size)
        self._engine = Engine(
            self._model, self._processor, max_batch=None if wanted in (None, 1) else wanted, max_length=max_length
        )
        self._video_options = {} if num_frames is None else {"num_frames": int(num_frames)}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer questions about images, videos and sounds; all requests share the engine's batch."""
        asked = []
        for instance in requests:
            context, options, doc_to_visual, doc_id, task, split = instance.args
            asked.append(self._request(context, self._visuals(doc_to_visual, doc_id, task, split), options))
        texts = []
        for instance, result in zip(requests, fitting_answers(self._engine, asked, self.rank == 0), strict=True):
            texts.append(result.text.strip())
            self.cache_hook.add_partial("generate_until", instance.args[:2], texts[-1])
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return, for each request, the log-probability of its continuation, and whether greedy choice gives it."""
        scores = []
        for instance in requests:
            context, target, doc_to_visual, doc_id, task, split = instance.args
            document = self.task_dict[task][split][doc_id]
            continuation = target(document) if callable(target) else target
            request = self._request(context, self._visuals(doc_to_visual, doc_id, task, split), {})
            scores.append(self._score(request, str(continuation)))
        return scores

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raise an error: a round's question depends on earlier answers, which lmms-eval asks for one by one."""
        raise NotImplementedError("videollama2 has no multi-round generation for lmms-eval")

    def clean(self) -> None:
        """Close the engine and free the model."""
        self._engine.close()
        super().clean()

    def _visuals(self, doc_to_visual: Any, doc_id: int, task: str, split: str) -> list[dict[str, Any]]:
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual is not None else None
        return [self._part(visual) for visual in visuals or ()]

    def _part(self, visual: Any) -> dict[str, Any]:
        """Return a message part for what a task calls a visual: a picture, a path, or a sound with its rate."""
        if isinstance(visual, Image.Image):
            return {"type": IMAGE, IMAGE: visual}
        if isinstance(visual, (str, Path)):
            kind = kind_of_path(visual)
            return {"type": kind, "path": str(visual), **(self._video_options if kind == "video" else {})}
        if isinstance(visual, Mapping) and {"array", "sampling_rate"} <= visual.keys():
            return {"type": AUDIO, AUDIO: wav_bytes(visual["array"], visual["sampling_rate"])}
        raise MediaError(f"a task gives a {type(visual).__name__}; expected a picture, a path or a sound with its rate")

    def _request(self, context: str, parts: Sequence[dict[str, Any]], options: Mapping[str, Any]) -> Request:
        """Return a request with the media in front of the text, as the model was trained."""
        if int(options.get("num_beams", 1) or 1) > 1:
            raise ConfigError("num_beams: the engine has no beams; ask for greedy answers")
        content = [*parts, {"type": "text", "text": context}]
        until = options.get("until") or ()
        return Request(
            [{"role": "user", "content": content}],
            max_new_tokens=int(options.get("max_new_tokens") or min(MAX_NEW_TOKENS, self._engine.max_length // 2)),
            **_sampling(options),
            stop=[text for text in ([until] if isinstance(until, str) else until) if text],
        )

    @torch.inference_mode()
    def _score(self, request: Request, continuation: str) -> tuple[float, bool]:
        prompt = self._processor.prompt(request.messages)
        media = [read_part(part, self._processor)[0] for part in request.media]
        batch = self._processor.prepare([prompt], [media]).to(self._model.device)
        ids_1L = self._tokenizer(continuation, add_special_tokens=False, return_tensors="pt").input_ids
        ids_1L = ids_1L.to(self._model.device)
        length = ids_1L.shape[1]
        if not length:
            raise ConfigError("a continuation of no tokens has no likelihood")
        batch["input_ids"] = torch.cat([batch["input_ids"], ids_1L], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        logits_1LV = self._model(**batch, logits_to_keep=length + 1).logits[:, :-1].float()
        chosen_1L = logits_1LV.log_softmax(-1).gather(-1, ids_1L.unsqueeze(-1)).squeeze(-1)
        return chosen_1L.sum().item(), bool((logits_1LV.argmax(-1) == ids_1L).all())


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return how tokens are chosen. The options of tasks are those of transformers, with the same meaning and defaults.

    Greedy choice has no other options: many tasks name them all the same, as ``top_p: 0`` beside ``temperature: 0``.
    """
    penalty = options.get("repetition_penalty")
    chosen = {} if penalty is None else {"repetition_penalty": penalty}
    given, samples = options.get("temperature"), options.get("do_sample")
    temperature = float(1.0 if given is None and samples else given or 0)
    if samples is False or not temperature or options.get("top_p") == 0:
        return {**chosen, "temperature": 0.0}
    # In transformers, 0 is no limit for these.
    return {**chosen, "temperature": temperature, **{name: options[name] for name in _SAMPLING if options.get(name)}}
