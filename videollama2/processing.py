"""Text + media -> model inputs. The one place where prompts, pixels and visual token counts meet.

``VideoLlama2Processor`` follows transformers' conventions (``AutoProcessor`` opens it after ``import videollama2``)
and the published ones: ``processor["video"](path)`` and ``processor["image"](path)`` give pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from videollama2.config import KNOWN_TOWERS, VideoLlama2Config, find_tower, read_json
from videollama2.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX
from videollama2.errors import CheckpointError, ConfigError, PromptError
from videollama2.media.frames import FrameSampling
from videollama2.media.image import load_image
from videollama2.media.pixels import PixelTransform
from videollama2.media.video import read_clip
from videollama2.model.connectors import num_visual_tokens
from videollama2.prompting import TAGS, Message, Prompt, build_prompt

_KIND_OF_SENTINEL = {IMAGE_TOKEN_INDEX: "image", VIDEO_TOKEN_INDEX: "video"}
_UNSET = object()


def visual_tokens(config: VideoLlama2Config, kind: str, num_frames: int | None = None) -> int:
    """Visual tokens of one medium; an image counts as ``config.num_frames`` frames."""
    frames = config.num_frames if kind == "image" or num_frames is None else num_frames
    return num_visual_tokens(config.mm_projector_type, frames, config.patches_per_side)


def check_pixels(pixels: torch.Tensor, kind: str) -> int:
    """Check that pixels are (T, C, H, W), one frame for an image; returns the number of frames.

    Raises:
        PromptError: another shape.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[0] < 1:
        raise PromptError(f"a {kind} must be a tensor (frames, 3, height, width), got {tuple(pixels.shape)}")
    if kind == "image" and pixels.shape[0] != 1:
        raise PromptError(f"an image must be a tensor (1, 3, height, width), got {tuple(pixels.shape)}")
    return pixels.shape[0]


def expand_placeholders(
    ids: Sequence[int], counts: Sequence[int], config: VideoLlama2Config, labels: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Replace each sentinel by that medium's number of placeholder ids.

    Args:
        ids: with published sentinels, see :class:`videollama2.prompting.Prompt`.
        counts: visual tokens per medium, in reading order.
        labels: as long as ``ids``; the expanded positions carry no label.

    Returns:
        ids and labels of equal length (labels all ignored when none are given).

    Raises:
        PromptError: sentinels and counts differ in number.
    """
    sentinels = [i for i in ids if i in _KIND_OF_SENTINEL]
    if len(sentinels) != len(counts):
        raise PromptError(f"the prompt names {len(sentinels)} media but {len(counts)} are given")
    token_ids = {"image": config.image_token_id, "video": config.video_token_id}
    remaining = iter(counts)
    out_ids: list[int] = []
    out_labels: list[int] = []
    for position, token in enumerate(ids):
        kind = _KIND_OF_SENTINEL.get(token)
        if kind is None:
            out_ids.append(token)
            out_labels.append(IGNORE_INDEX if labels is None else labels[position])
        else:
            count = next(remaining)
            out_ids += [token_ids[kind]] * count
            out_labels += [IGNORE_INDEX] * count
    return out_ids, out_labels


def padding_id(tokenizer: Any) -> int:
    """Any id serves for padding: the mask hides it. Published Llama-3 tokenizers have none of their own."""
    return next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)


def pad_rows(rows: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    """Rows of ids -> (B, L), filled with ``value`` on the ``left`` or ``right``."""
    length = max(map(len, rows))
    padded = torch.full((len(rows), length), value, dtype=torch.long)
    for row, target in zip(rows, padded, strict=True):
        target[slice(length - len(row), None) if side == "left" else slice(len(row))] = torch.tensor(
            row, dtype=torch.long
        )
    return padded


def collate(
    rows: Sequence[Sequence[int]],
    media: Sequence[Sequence[tuple[str, torch.Tensor]]],
    pad_token_id: int,
    side: str,
    labels: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """One batch from expanded rows and their media.

    Args:
        rows: ids with placeholders, one list per sample.
        media: per sample, ``(kind, pixels_TCHW)`` in reading order.
        side: where to pad; ``left`` for generation, ``right`` for training.

    Returns:
        ``input_ids``, ``attention_mask`` (B, L), optionally ``labels``; ``pixel_values`` (images, C, H, W) and
        ``pixel_values_videos``, a tensor (videos, T, C, H, W) or a list where frame counts differ, when there are any.
    """
    batch: dict[str, Any] = {
        "input_ids": pad_rows(rows, pad_token_id, side),
        "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, side),
    }
    if labels is not None:
        batch["labels"] = pad_rows(labels, IGNORE_INDEX, side)
    flat = [item for sample in media for item in sample]
    images = [pixels for kind, pixels in flat if kind == "image"]
    videos = [pixels for kind, pixels in flat if kind == "video"]
    if images:
        batch["pixel_values"] = torch.cat(images)
    if videos:
        same = len({video.shape[0] for video in videos}) == 1
        batch["pixel_values_videos"] = torch.stack(videos) if same else videos
    return batch


class VideoLlama2Processor(ProcessorMixin):
    """Tokenizer, image preprocessing and the model's visual token counts, joined.

    Args:
        image_processor: transformers' PIL processor of CLIP or SigLIP; carries size, mean and resampling.
        tokenizer: the decoder's.
        config: of the model, for frames, connector and placeholder ids.
        chat_template: default the tokenizer's.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        config: VideoLlama2Config | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        if config is None:
            raise ConfigError("VideoLlama2Processor needs the model's configuration")
        self.model_config = config
        self.transform = PixelTransform.from_image_processor(image_processor)
        self.image_token, self.video_token = TAGS["image"], TAGS["video"]
        self.image_token_id, self.video_token_id = config.image_token_id, config.video_token_id

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> VideoLlama2Processor:
        """Open the processor of a published or own checkpoint (folder or hub name).

        Keyword arguments: ``config`` to override the checkpoint's, and hub options (``revision``, ``token``,
        ``cache_dir``, ``local_files_only``).
        """
        config = kwargs.pop("config", None)
        hub = {k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs}
        if config is None:
            config = VideoLlama2Config.from_pretrained(pretrained_model_name_or_path, **hub)
        tokenizer = load_tokenizer(pretrained_model_name_or_path, **hub)
        return cls(load_image_processor(pretrained_model_name_or_path, config, **hub), tokenizer, config)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
        """Write tokenizer and image preprocessing beside the weights; ``config.json`` is the model's."""
        files = self.tokenizer.save_pretrained(save_directory)
        files = [*files, *self.image_processor.save_pretrained(save_directory)]
        if not (Path(save_directory) / "config.json").exists():
            self.model_config.save_pretrained(save_directory)
        return files

    # ---------------------------------------------------------------------------------------------- pixels

    def __getitem__(self, kind: str) -> Callable[..., torch.Tensor]:
        """``processor["video"]`` and ``processor["image"]``, the published way to get pixels."""
        loaders = {"video": self.load_video, "image": self.load_image}
        if kind not in loaders:
            raise KeyError(f"{kind!r}: a processor has 'video' and 'image'")
        return loaders[kind]

    def load_video(
        self,
        video: Any,
        s: float | None = None,
        e: float | None = None,
        aspect_ratio: str | None | object = _UNSET,
        num_frames: int | None | object = _UNSET,
        *,
        start: float | None = None,
        end: float | None = None,
        backend: str = "auto",
    ) -> torch.Tensor:
        """Read a video and return ``pixels_TCHW``.

        Args:
            video: path, bytes, gif, folder of frames, list of images, array; see :func:`read_clip`.
            s, e: published names of ``start`` and ``end``, in seconds.
            aspect_ratio: None (published at inference) or ``pad``; default what the checkpoint was trained with
                where it says so.
            num_frames: default the checkpoint's; None: one frame per second.
            backend: video decoder, see :mod:`videollama2.media.video`.

        Raises:
            MediaError: the file cannot be read, or not as asked.
        """
        sampling = FrameSampling(
            num_frames=self.model_config.num_frames if num_frames is _UNSET else num_frames,
            start=start if start is not None else s,
            end=end if end is not None else e,
        )
        clip = read_clip(video, sampling, backend=backend)
        return self.transform(clip.frames_THWC, self._aspect_ratio(aspect_ratio))

    def load_image(self, image: Any, aspect_ratio: str | None | object = _UNSET) -> torch.Tensor:
        """Read an image and return pixels (1, C, H, W). ``aspect_ratio`` as in :meth:`load_video`."""
        return self.transform([load_image(image)], self._aspect_ratio(aspect_ratio))

    def _aspect_ratio(self, value: str | None | object) -> str | None:
        return getattr(self.model_config, "mm_inference_aspect_ratio", None) if value is _UNSET else value

    # ---------------------------------------------------------------------------------------------- inputs

    def prepare(
        self,
        prompts: Sequence[Prompt],
        media: Sequence[Sequence[torch.Tensor]],
        padding_side: str = "left",
    ) -> BatchFeature:
        """Prompts and their pixels, in the order of the prompts' tags, -> one padded batch.

        Raises:
            PromptError: a prompt names more or fewer media than are given, or pixels of a wrong shape.
        """
        rows, pairs = [], []
        for prompt, pixels in zip(prompts, media, strict=True):
            if len(prompt.tags) != len(pixels):
                raise PromptError(f"the prompt names {len(prompt.tags)} media but {len(pixels)} are given")
            kinds = [tag.strip("<>") for tag in prompt.tags]
            counts = [
                visual_tokens(self.model_config, kind, check_pixels(item, kind))
                for kind, item in zip(kinds, pixels, strict=True)
            ]
            rows.append(expand_placeholders(prompt.token_ids(self.tokenizer), counts, self.model_config)[0])
            pairs.append(list(zip(kinds, pixels, strict=True)))
        return BatchFeature(collate(rows, pairs, self.pad_token_id, padding_side))

    @property
    def pad_token_id(self) -> int:
        """See :func:`padding_id`."""
        return padding_id(self.tokenizer)

    def prompt(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        """Messages -> prompt in this model's format, see :func:`videollama2.prompting.build_prompt`."""
        return build_prompt(messages, self.tokenizer, self.model_config.text_config.model_type, add_generation_prompt)

    def apply_chat_template(
        self,
        conversation: Sequence[Message],
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **kwargs: Any,
    ) -> str | BatchFeature:
        """transformers' call form for one conversation.

        Media parts hold their source under their own type, ``path`` or ``url`` (``{"type": "video", "path": ...}``)
        when ``tokenize`` is set; the result is then a batch of one. Otherwise it is the prompt's text with tags.
        """
        prompt = self.prompt(conversation, add_generation_prompt)
        if not tokenize:
            return prompt.text
        media = []
        for message in conversation:
            for part in message["content"] if not isinstance(message["content"], str) else ():
                kind = part["type"]
                if kind in TAGS:
                    source = next((part[key] for key in (kind, "path", "url") if key in part), None)
                    if source is None:
                        raise PromptError(f"a {kind} part needs its source under {kind!r} or 'path'")
                    media.append(self._pixels(source, self[kind]))
        return self.prepare([prompt], [media])

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        padding_side: str = "left",
        return_tensors: str = "pt",
        padding: bool | str = True,
        **video_options: Any,
    ) -> BatchFeature:
        """transformers' call form: prompt text with ``<image>`` / ``<video>`` tags, one per medium, in order.

        Args:
            images, videos: one medium, or a list in reading order over all texts: paths, PIL images, arrays, or pixels
                this processor made. A video that is itself a list of frames goes into a list: ``videos=[[f1, f2]]``.
            text: one prompt, or several (always padded, on ``padding_side``).
            return_tensors: ``pt`` only.
            video_options: of :meth:`load_video`.

        Raises:
            PromptError: no text, or tags and media differ in number.
        """
        if not text:
            raise PromptError("a prompt text is needed")
        if return_tensors != "pt":
            raise ConfigError(f"return_tensors must be 'pt', got {return_tensors!r}")
        unknown = set(video_options) - {"s", "e", "start", "end", "num_frames", "aspect_ratio", "backend"}
        if unknown:
            raise ConfigError(f"the processor has no option {', '.join(sorted(unknown))}")
        image_options = {key: value for key, value in video_options.items() if key == "aspect_ratio"}
        texts = [text] if isinstance(text, str) else list(text)
        queues = {
            TAGS["image"]: [self._pixels(item, partial(self.load_image, **image_options)) for item in _as_list(images)],
            TAGS["video"]: [self._pixels(item, partial(self.load_video, **video_options)) for item in _as_list(videos)],
        }
        prompts = [_split_tags(t) for t in texts]
        for tag, queue in queues.items():
            wanted = sum(prompt.tags.count(tag) for prompt in prompts)
            if wanted != len(queue):
                raise PromptError(f"the text holds {wanted} {tag} tag(s) but {len(queue)} are given")
        media = [[queues[tag].pop(0) for tag in prompt.tags] for prompt in prompts]
        return self.prepare(prompts, media, padding_side)

    @staticmethod
    def _pixels(item: Any, load: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        return item if torch.is_tensor(item) and item.is_floating_point() else load(item)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any) -> Any:
        """Contract of serving engines: visual tokens per medium, independent of its size in pixels."""
        from transformers.processing_utils import MultiModalData

        data: dict[str, Any] = {}
        if image_sizes is not None:
            data["num_image_tokens"] = [visual_tokens(self.model_config, "image")] * len(image_sizes)
            data["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            data["num_video_tokens"] = [visual_tokens(self.model_config, "video", s[0]) for s in video_sizes]
        return MultiModalData(**data)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "pixel_values_videos"]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _split_tags(text: str) -> Prompt:
    """Call form of transformers: here the caller wrote the tags on purpose."""
    pieces = re.split("(" + "|".join(map(re.escape, TAGS.values())) + ")", text)
    return Prompt(tuple(pieces[::2]), tuple(pieces[1::2]))


def load_tokenizer(name_or_path: str | Path, **hub: Any) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, **hub)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name_or_path}: no tokenizer can be read from this checkpoint ({error})") from error


def load_image_processor(name_or_path: str | Path, config: VideoLlama2Config, **hub: Any) -> Any:
    """Image preprocessing of a checkpoint: its own, else that of the vision encoder it names. Always PIL.

    Which back end transformers picks by default depends on whether torchvision is installed, and pixel values with
    it; published numbers were made with PIL.
    """
    settings = _find_preprocessor(name_or_path, config, **hub)
    kind = {"clip_vision_model": "CLIPImageProcessorPil", "siglip_vision_model": "SiglipImageProcessorPil"}
    return _image_processor_class(kind[config.vision_config.model_type])(**settings)


def _image_processor_class(name: str) -> type:
    import transformers

    return getattr(transformers, name)


_NOT_SETTINGS = ("_valid_processor_keys", "image_processor_type", "feature_extractor_type", "processor_class")


def _find_preprocessor(name_or_path: str | Path, config: VideoLlama2Config, **hub: Any) -> dict[str, Any]:
    name = config.mm_vision_tower
    settings = _read_preprocessor(name_or_path, **hub)
    if settings is None and name:
        folder = find_tower(name, name_or_path)
        settings = _read_preprocessor(folder) if folder is not None else None
        if settings is None and name in KNOWN_TOWERS:
            settings = KNOWN_TOWERS[name]["preprocessor"]
        if settings is None and folder is None:
            settings = _read_preprocessor(name, **hub)
    if settings is None:
        raise CheckpointError(
            f"{name_or_path}: found no preprocessor_config.json here nor for its vision encoder {name!r}"
        )
    return {key: value for key, value in settings.items() if key not in _NOT_SETTINGS}


def _read_preprocessor(name_or_path: str | Path, **hub: Any) -> dict[str, Any] | None:
    path = cached_file(
        str(name_or_path),
        "preprocessor_config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return None if path is None else read_json(Path(path))


