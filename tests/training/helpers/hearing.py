"""A very small audio encoder, a base model that sees, and records with sound, for runs of ``train.py``."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from tests.conftest import golden_audio_dir
from videollama2.audio_config import AudioConfig
from videollama2.checkpoints import build_from_parts
from videollama2.checkpoints.audio_tower import load_beats
from videollama2.checkpoints.write import save_model
from videollama2.model.encoders.beats import BeatsModel

TOKENS = 12
"""Tokens of a clip: 6 patches along time, 2 along frequency."""


def audio_config(**changes: object) -> AudioConfig:
    """Clips of one second, 32 mel bins, two layers of width 16."""
    sizes = {
        "embed_dim": 12,
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "conv_pos": 8,
        "conv_pos_groups": 2,
        "num_buckets": 16,
        "max_distance": 20,
        "predictor_class": 4,
        "clip_seconds": 1.0,
        "num_windows": 2,
        "window_seconds": 0.5,
        "num_mel_bins": 32,
    }
    return AudioConfig(**{**sizes, **changes})


def write_beats(path: Path, **changes: object) -> Path:
    """An encoder in Microsoft's form, whose ``cfg`` also has the rules for clips."""
    torch.manual_seed(0)
    config = audio_config(**changes)
    weights = BeatsModel(config).state_dict()
    cfg = {name: value for name, value in config.to_diff_dict().items() if isinstance(value, bool | int | float)}
    torch.save({"cfg": cfg, "model": weights}, path)
    return path


def write_seeing(folder: Path, parts: Path, beats: Path | None = None, connector: str = "stc_connector_v35") -> Path:
    """A whole model, without an audio encoder unless one is given."""
    torch.manual_seed(1)
    options = {"mm_projector_type": connector, "num_frames": 4}
    ears = None if beats is None else (load_beats(beats), str(beats), "mlp2x_gelu")
    save_model(*build_from_parts(parts / "llm", parts / "clip", **options, ears=ears), folder)
    return folder


def record(name: object, answer: str, tag: str = "", **media: object) -> dict:
    turns = [{"from": "human", "value": f"{tag}\nWhat is it?"}, {"from": "gpt", "value": answer}]
    return {"id": str(name), **media, "conversations": turns}


HEARD = ("av_stereo_44k_3s.mp4", "duet_cut.mp4", "av_mono_22k_1s.mp4", "video_no_audio.mp4")
SOUNDS = ("door_cut.wav", "noise_mono_8k.wav", "u8_mono_8k.wav", "door_cut.wav", "speech_mono_16k.wav")


def write_records(folder: Path) -> dict[str, Path]:
    """Annotation files: ``audio`` (five records of four files), ``av`` (four), ``other`` (a video, a picture, text)."""
    media = golden_audio_dir() / "media"
    answers = ("a door", "noise", "a red circle", "two squares", "speech")
    rows = {
        "audio": [
            record(i, answer, "<audio>", audio=str(media / name))
            for i, (name, answer) in enumerate(zip(SOUNDS, answers, strict=True))
        ],
        "av": [
            record(i, answer, "<video>", video=str(media / name))
            for i, (name, answer) in enumerate(zip(HEARD, answers, strict=False))
        ],
        "other": [
            record("seen", "a man", "<video>", video=str(media / "mute_real_cut.mp4")),
            record("picture", "a picture", "<image>", image=str(media / "still.jpg")),
            record("text", "yes"),
        ],
    }
    files = {}
    for name, records in rows.items():
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(records))
    return files


def stage_flags(seeing: Path, beats: Path | None, **changes: object) -> dict[str, object]:
    """Flags that make a model that sees the start of an audio stage."""
    return {
        "model_path": seeing,
        "vision_tower": None,
        "mm_projector_type": None,
        "num_frames": None,
        "freeze_vision_tower": True,
        "audio_tower": beats,
        "tune_mm_mlp_adapter_a": True,
        **changes,
    }


def joint_flags(seeing: Path, beats: Path, files: dict[str, Path], **changes: object) -> dict[str, object]:
    """Flags of the joint stage over all records of :func:`write_records`."""
    data = {"data_path": [files["av"], files["audio"], files["other"]], "va": ["True", "False", "False"]}
    learning = {"tune_audio_tower": True, "tune_adapter_llm": True}
    return stage_flags(seeing, beats, **data, **learning, **changes)


def stages(run: Callable, seeing: Path, beats: Path, files: dict[str, Path], **changes: object) -> tuple:
    """Run the three published stages, each from the result of the one before."""
    alone = {"data_path": None, "data_path_a": files["audio"], **changes}
    first = run(**stage_flags(seeing, beats, **alone))
    start = {"pretrain_mm_mlp_adapter_a": first.folder / "mm_projector_a.bin", "tune_audio_tower": True}
    second = run(**stage_flags(seeing, beats, **start, **alone))
    start = {"pretrain_mm_mlp_adapter_a": second.folder / "mm_projector_a.bin"}
    third = run(**joint_flags(seeing, second.folder / "audio_tower.bin", files, **start, **changes))
    return first, second, third
