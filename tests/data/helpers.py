"""What tests of data share besides fixtures: dialogues, files of records, and the command that checks them."""

import argparse
import io
import tarfile
from pathlib import Path

from videollama2.data.check import add_check_command

CASES = Path(__file__).parent / "cases"
"""Annotation files as people have them, with the media they name."""


def run_check(*argv):
    """Run ``data check`` with these arguments; return its exit code."""
    parser = argparse.ArgumentParser()
    add_check_command(parser.add_subparsers())
    args = parser.parse_args(["check", *map(str, argv)])
    return args.run(args)


def dialogue(*pairs: tuple[str, str]) -> list[dict]:
    """Turns of a record: questions and answers."""
    return [turn for q, a in pairs for turn in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]


def write_shard(path, members):
    """A tar file of these names and contents."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
