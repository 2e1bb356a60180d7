"""Reads sound for the processor."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from videollama2.config import VideoLlama2Config
from videollama2.media.audio import ClipRules, Sound, read_sound, read_video_sound, sound_features
from videollama2.media.kinds import AUDIO
from videollama2.media.readers import MediaWarning
from videollama2.media.sources import describe_source
from videollama2.processing.placeholders import check_kind
from videollama2.processing.read_options import ReadOptions


class SoundReading:
    """Turns sounds into filter banks, a mixin for a processor that has a ``model_config``."""

    model_config: VideoLlama2Config

    def load_audio(self, audio: Any, **options: Any) -> torch.Tensor:
        """Read a sound and return ``fbank_1TF`` in bfloat16; see :meth:`hear`.

        Args:
            audio: path, bytes or binary file in any container that PyAV reads.
            options: options of :class:`videollama2.media.audio.SoundSampling`, and ``of_video`` if the sound belongs
                to a video and is divided into windows, as published.

        Warns:
            MediaWarning: a video has no sound track, and silence is returned.
        """
        fbank_1TF, note = self.hear(audio, ReadOptions.of(AUDIO, options))
        if note is not None:
            warnings.warn(f"{describe_source(audio)}: {note}", MediaWarning, stacklevel=2)
        return fbank_1TF

    def hear(self, source: Any, options: ReadOptions) -> tuple[torch.Tensor, str | None]:
        """Read a sound and return ``fbank_1TF``, and a note for the caller if there is something unusual about it.

        Args:
            source: as for :meth:`load_audio`, or a :class:`~videollama2.media.audio.Sound` that was cut by the rules
                of this model, for which the options have no effect.

        Raises:
            MediaError: there is no readable sound, or it cannot be read with these options.
            PromptError: the model has no audio encoder.
        """
        check_kind(self.model_config, AUDIO)
        config = self.model_config.hearing
        if isinstance(source, Sound):
            return sound_features(source, config), source.note
        read = read_video_sound if options.of_video else read_sound
        sound = read(source, ClipRules.of(config), options.sound)
        return sound_features(sound, config), sound.note
