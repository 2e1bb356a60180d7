"""Defines ``VideoLlama2Processor``, which turns text and media into model inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from videollama2.config import VideoLlama2Config
from videollama2.errors import ConfigError, PromptError
from videollama2.media.kinds import AUDIO, IMAGE, KINDS, TAGS, VIDEO
from videollama2.media.pixels import PixelTransform
from videollama2.model_code import PROCESSOR_CONFIG, write_code
from videollama2.processing.conversations import as_batch, media_of
from videollama2.processing.inputs import as_list, as_media, continues, in_reading_order, split_tags
from videollama2.processing.media_reading import MediaReading
from videollama2.processing.open_parts import load_image_processor, load_tokenizer
from videollama2.processing.options import CallOptions, TextOptions
from videollama2.processing.placeholders import media_tokens, padding_id
from videollama2.processing.rows import batch_of
from videollama2.processing.video_options import options_of_each
from videollama2.prompting import Message, Prompt, build_labelled_prompt, build_prompt, template_variables


class VideoLlama2Processor(MediaReading, ProcessorMixin):
    """Combines the tokenizer, the image preprocessing and the model's numbers of media tokens.

    Args:
        image_processor: transformers' PIL processor for CLIP or SigLIP, with size, mean and resampling. None for a
            model without a vision encoder.
        tokenizer: the decoder's tokenizer.
        config: the model's configuration, which gives the number of frames, the connector and the placeholder ids.
        chat_template: defaults to the tokenizer's.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        config: VideoLlama2Config | None = None,
        chat_template: str | None = None,
    ) -> None:
        template = chat_template or tokenizer.chat_template
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=template)
        if config is None:
            raise ConfigError("VideoLlama2Processor needs the model's configuration")
        self.model_config = config
        self.transform = None if image_processor is None else PixelTransform.from_image_processor(image_processor)
        self.image_token, self.video_token, self.audio_token = TAGS[IMAGE], TAGS[VIDEO], TAGS[AUDIO]

    @property
    def image_token_id(self) -> int:
        """The placeholder id of images. It is read from the configuration, where resizing the vocabulary changes it."""
        return self.model_config.image_token_id

    @property
    def video_token_id(self) -> int:
        """The placeholder id of videos, see :attr:`image_token_id`."""
        return self.model_config.video_token_id

    @property
    def audio_token_id(self) -> int:
        """The placeholder id of sounds, see :attr:`image_token_id`."""
        return self.model_config.audio_token_id

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Check a part as transformers does, except that the image processor may be None."""
        if argument is None and argument_name == "image_processor":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)

    # Options are passed by name here and in the methods below, whose signatures are narrower than transformers'.
    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> VideoLlama2Processor:
        """Open the processor of a checkpoint (folder or hub name), published or not.

        Keyword arguments: ``config`` to override the checkpoint's, and hub options (``revision``, ``token``,
        ``cache_dir``, ``local_files_only``).
        """
        config = kwargs.pop("config", None)
        hub = {k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs}
        if config is None:
            config = VideoLlama2Config.from_pretrained(pretrained_model_name_or_path, **hub)
        tokenizer = load_tokenizer(pretrained_model_name_or_path, **hub)
        return cls(load_image_processor(pretrained_model_name_or_path, config, **hub), tokenizer, config)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, with_code: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save the tokenizer and the image preprocessing; the model itself saves ``config.json``.

        ``with_code`` writes the code that opens the folder without this package (:mod:`videollama2.model_code`).
        """
        files = self.tokenizer.save_pretrained(save_directory)
        if self.image_processor is not None:
            files = [*files, *self.image_processor.save_pretrained(save_directory)]
        # A processor that is saved alone must still say how many frames and which encoder it is for. The file of a
        # model that was saved before has more in it.
        if not (Path(save_directory) / "config.json").exists():
            self.model_config.save_pretrained(save_directory)
        named = {"processor_class": type(self).__name__}
        (Path(save_directory) / PROCESSOR_CONFIG).write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
        if with_code:
            write_code(save_directory)
        return files

    def prepare(
        self,
        prompts: Sequence[Prompt],
        media: Sequence[Sequence[torch.Tensor]],
        padding_side: str = "left",
    ) -> BatchFeature:
        """Make one padded batch from prompts and their media, which are in the order of the prompts' tags.

        Raises:
            PromptError: a prompt has more or fewer tags than media, or a medium has the wrong shape.
        """
        return self._batch(prompts, media, TextOptions(padding_side=padding_side))

    @property
    def pad_token_id(self) -> int:
        """See :func:`padding_id`."""
        return padding_id(self.tokenizer)

    def prompt(self, messages: Sequence[Message], add_generation_prompt: bool = True, **options: Any) -> Prompt:
        """Build a prompt in this model's format; see :func:`videollama2.prompting.build_prompt` for the arguments."""
        decoder_type = self.model_config.text_config.model_type
        return build_prompt(messages, self.tokenizer, decoder_type, add_generation_prompt, **options)

    def apply_chat_template(  # type: ignore[override] - tokenised results are whole batches by default
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "pt",
        return_dict: bool = True,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> str | list[str] | BatchFeature | Any:
        """Render one conversation or a list of them, as in transformers.

        Args:
            conversation: messages whose media parts have their source under their own type, ``path``, ``url`` or
                ``base64`` (``{"type": "video", "path": ...}``) and may have options for reading it (``start``,
                ``end``, ``num_frames``, ``fps``, ...). OpenAI's ``image_url`` parts are accepted too.
            chat_template: template, or name of one of the tokenizer's, to use instead of the default.
            tools, documents: values for templates that use them.
            return_assistant_tokens_mask: with ``tokenize``, return ``assistant_masks``, 1 for the assistant's tokens.
            tokenize: read the media and return a batch like :meth:`__call__`; if False, return the prompt with tags,
                or a list of prompts for a list of conversations.
            return_dict: if False, return only ``input_ids``.
            processor_kwargs: options of :meth:`__call__`.
            kwargs: variables of the template; all others are options of :meth:`__call__`.

        Raises:
            PromptError: messages are invalid. ConfigError: an option does not apply here.
            MediaError: a medium cannot be read.
        """
        conversations, is_batch = as_batch(conversation)
        variables = template_variables(self.tokenizer, chat_template)
        # The arguments of transformers are one flat mix: what the template reads is a variable of it, the rest is an
        # option of this processor, which refuses what it does not know.
        template_options = {name: value for name, value in kwargs.items() if name in variables}
        template_options |= {
            name: value for name, value in (("tools", tools), ("documents", documents)) if value is not None
        }
        given = {**(processor_kwargs or {}), **{n: v for n, v in kwargs.items() if n not in variables}}
        render = partial(
            self._render,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continues(continue_final_message, add_generation_prompt),
            template_options=template_options,
            chat_template=chat_template,
        )
        if tokenize:
            given.setdefault("return_tensors", "pt" if return_tensors == "auto" else return_tensors)
            rendered = [render(one, return_assistant_tokens_mask) for one in conversations]
            batch = self._tokenised(conversations, rendered, CallOptions.of(given, self.image_processor))
            return batch if return_dict else batch["input_ids"]
        if return_assistant_tokens_mask or CallOptions.of(given, self.image_processor) != CallOptions():
            names = ", ".join(sorted(given)) or "return_assistant_tokens_mask"
            raise ConfigError(f"{names}: only have an effect with tokenize=True")
        texts = [render(one, False)[0].text for one in conversations]
        return texts if is_batch else texts[0]

    def _tokenised(
        self,
        conversations: Sequence[Sequence[Message]],
        rendered: Sequence[tuple[Prompt, list[bool] | None]],
        options: CallOptions,
    ) -> BatchFeature:
        """Read the media of conversations and make one batch of them and the given prompts."""
        parts = [media_of(one) for one in conversations]
        videos = sum(kind == VIDEO for own in parts for kind, *_ in own)
        of_videos = iter(options_of_each(options.media[VIDEO], videos))
        media = [
            [
                self.load_medium(kind, source, {**(next(of_videos) if kind == VIDEO else options.media[kind]), **said})
                for kind, source, said in own
            ]
            for own in parts
        ]
        media = [[m for medium in own for m in as_media(medium)] for own in media]
        answered = [flags for _, flags in rendered if flags is not None]
        return self._batch([prompt for prompt, _ in rendered], media, options.text, answered or None)

    def _render(
        self, conversation: Sequence[Message], with_answers: bool, **options: Any
    ) -> tuple[Prompt, list[bool] | None]:
        """Return the prompt and, if requested, which of its tokens belong to answers."""
        decoder_type = self.model_config.text_config.model_type
        if not with_answers:
            return build_prompt(conversation, self.tokenizer, decoder_type, **options), None
        if options.pop("continue_final_message"):
            raise ConfigError("continue_final_message and return_assistant_tokens_mask do not go together")
        return build_labelled_prompt(conversation, self.tokenizer, decoder_type, **options)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Process prompts with one tag (``<image>``, ``<video>``, ``<audio>``) per medium, as in transformers.

        Args:
            images, videos: one medium, or a list in reading order over all texts: paths, PIL images, arrays, or pixels
                from this processor. Images may also be given as one list per text: ``[[a, b], [c]]``. A video that is
                itself a list of frames must be wrapped in a list: ``videos=[[f1, f2]]``.
            text: one prompt, or several.
            audio: one sound, or a list: paths, bytes, or results of ``processor["audio"]``.
            kwargs: options, flat or in transformers' groups (``text_kwargs``, ``images_kwargs``, ``videos_kwargs``,
                ``common_kwargs``): fields of :class:`~videollama2.processing.options.TextOptions`, options of
                :meth:`load_image` and :meth:`load_video`, and for videos ``fps``, ``do_sample_frames`` and
                ``video_metadata``. Rows are padded on the left by default.

        Raises:
            PromptError: there is no text, or tags and media differ in number. ConfigError: an option is not supported.
        """
        if not text:
            raise PromptError("a prompt text is needed")
        options = CallOptions.of(kwargs, self.image_processor)
        prompts = [split_tags(t) for t in ([text] if isinstance(text, str) else text)]
        images = in_reading_order(as_list(images), prompts)
        videos = as_list(videos)
        queues = {
            TAGS[IMAGE]: [self.load_medium(IMAGE, item, options.media[IMAGE]) for item in images],
            TAGS[VIDEO]: [
                self.load_medium(VIDEO, item, own)
                for item, own in zip(videos, options_of_each(options.media[VIDEO], len(videos)), strict=True)
            ],
            TAGS[AUDIO]: [self.load_medium(AUDIO, item, options.media[AUDIO]) for item in as_list(audio)],
        }
        for tag, queue in queues.items():
            wanted = sum(prompt.tags.count(tag) for prompt in prompts)
            if wanted != len(queue):
                raise PromptError(f"the text holds {wanted} {tag} tag(s) but {len(queue)} are given")
        media = [[queues[tag].pop(0) for tag in prompt.tags] for prompt in prompts]
        pairs = zip(prompts, media, strict=True)
        prompts = [prompt.with_sounds([isinstance(medium, dict) for medium in own]) for prompt, own in pairs]
        return self._batch(prompts, [[m for medium in own for m in as_media(medium)] for own in media], options.text)

    def _batch(
        self,
        prompts: Sequence[Prompt],
        media: Sequence[Sequence[torch.Tensor]],
        options: TextOptions,
        answered: Sequence[Sequence[bool]] | None = None,
    ) -> BatchFeature:
        """Make one batch, see :func:`videollama2.processing.rows.batch_of`."""
        return BatchFeature(batch_of(prompts, media, self.tokenizer, self.model_config, options, answered))

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any) -> Any:
        """Return the visual tokens per medium for serving engines; they do not depend on its size in pixels."""
        from transformers.processing_utils import MultiModalData

        data: dict[str, Any] = {}
        if image_sizes is not None:
            data["num_image_tokens"] = [media_tokens(self.model_config, IMAGE)] * len(image_sizes)
            data["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            data["num_video_tokens"] = [media_tokens(self.model_config, VIDEO, s[0]) for s in video_sizes]
        return MultiModalData(**data)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *(kind.batch_key for kind in KINDS.values())]
