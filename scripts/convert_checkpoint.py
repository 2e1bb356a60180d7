#!/usr/bin/env python3
"""Convert a checkpoint between the published form and this project's.

    python scripts/convert_checkpoint.py SRC DST --format published
    python scripts/convert_checkpoint.py SRC DST --format native

Both forms hold the same tensors under the same names. ``published`` writes the flat ``config.json`` that the
published code reads under transformers 4 (``rope_theta`` included) and keeps ``mm_vision_tower`` as a name;
``native`` writes the nested one, which needs no second repository for the vision encoder.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.errors import ConfigError, VideoLlama2Error
from videollama2.flags import PATH_HELP


def convert(source: str, destination: str, form: str) -> None:
    """Read the checkpoint ``source`` and write it to the new folder ``destination`` in ``form``.

    Tensors come out bit-identical. (Of a file that mixes dtypes, equal in value, in the narrowest dtype for them all.)

    Args:
        source: folder, hub name or ``videollama2-tiny``.
        form: ``published`` or ``native``.

    Raises:
        ConfigError: the destination is there already, or the published form has no name for the decoder.
        CheckpointError: the source is no full checkpoint, or its weights do not fit.
    """
    from videollama2.checkpoints import load_checkpoint, resolve_name, stored_dtype

    target, source = Path(destination), resolve_name(source)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; conversion writes into a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty; conversion writes into a new folder")
    # Not "auto", which believes config.json, nor the default: another dtype would round.
    dtype = stored_dtype(source)
    model, processor = load_checkpoint(source, dtype=dtype)
    if form == "published":
        _check_published_decoder(source, model.config.text_config.model_type)
    for config in model.config.parts:
        config.dtype = dtype
    model.save_pretrained(target)
    processor.save_pretrained(target)
    if form == "published":
        flat = json.dumps(model.config.to_flat_dict(), indent=2, sort_keys=True)
        (target / "config.json").write_text(flat + "\n", encoding="utf-8")
        _copy_tokenizer(source, target)
        _write_tower(target, model.config, processor)


def _check_published_decoder(source: str, decoder: str) -> None:
    from videollama2.flat_form import FLAT_MODEL_TYPES

    known = sorted(set(FLAT_MODEL_TYPES.values()))
    if decoder not in known:
        raise ConfigError(
            f"{source} has a {decoder!r} decoder; the published form knows {', '.join(known)}: use --format native"
        )


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def _copy_tokenizer(source: str, target: Path) -> None:
    """The source's own tokenizer files, where it has them: transformers 5 writes some that version 4 cannot read."""
    from videollama2.hub import find_file

    if find_file(source, "tokenizer_config.json") is None:
        return
    for name in (*_TOKENIZER_FILES, "chat_template.jinja"):
        (target / name).unlink(missing_ok=True)
        found = find_file(source, name)
        if found is not None:
            shutil.copyfile(found, target / name)


def _write_tower(target: Path, config, processor) -> None:
    """Beside a flat config lies the encoder's own, for encoders that are no hub repository."""
    from videollama2.model.encoders import KNOWN_TOWERS

    if config.mm_vision_tower in KNOWN_TOWERS or not config.sees:
        return
    tower = target / Path(config.mm_vision_tower or "vision_tower").name
    config.sight.save_pretrained(tower)
    processor.image_processor.save_pretrained(tower)
    flat = json.loads((target / "config.json").read_text(encoding="utf-8"))
    flat["mm_vision_tower"] = tower.name
    (target / "config.json").write_text(json.dumps(flat, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> int:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help=PATH_HELP)
    parser.add_argument("destination", metavar="DST", help="new folder")
    parser.add_argument("--format", choices=("published", "native"), required=True)
    add_debug_flag(parser)
    args = parser.parse_args()
    return run_command(lambda: _convert(args), "convert_checkpoint", args.debug, (VideoLlama2Error, OSError))


def _convert(args: argparse.Namespace) -> None:
    convert(args.source, args.destination, args.format)
    print(f"wrote {args.destination} in {args.format} form")


if __name__ == "__main__":
    sys.exit(main())
