"""Nodes with files of their own: a run begins only if all have the same, and ends on all of them otherwise."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.helpers.forked import run_ranks
from videollama2 import train

from .helpers.runs import FEW_PARTS, flags

pytestmark = pytest.mark.slow


def main(argv):
    """One of two processes, each alone on its node: go through runs and tell how each ended."""
    rank = int(os.environ["RANK"])
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    runs, *folders = map(Path, argv)
    os.chdir(folders[rank])
    for name, of_rank in json.loads(runs.read_text()).items():
        print(f"\nprocess {rank} ended {name} with {train.main(of_rank[rank])}", flush=True)
    return 0


@pytest.fixture
def nodes(world, tmp_path):
    """The world twice, with more files: ``shard.jsonl`` has other records on the second node, which lacks a video."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for number, folder in enumerate(folders):
        shutil.copytree(world, folder)
        talk = [{"from": "human", "value": "Is a circle a shape?"}, {"from": "gpt", "value": ["yes", "no"][number]}]
        (folder / "shard.jsonl").write_text(json.dumps({"id": "s", "conversations": talk}) + "\n")
    rows = [row for row in json.loads((world / "mixed.json").read_text()) if "video" in row]
    rows = list({row["video"]: row for row in rows}.values())[:8]
    for folder in folders:
        (folder / "videos.json").write_text(json.dumps(rows))
    (folders[0] / "one.jsonl").write_text(json.dumps(rows[0]))
    lacking = folders[1] / rows[5]["video"]
    lacking.unlink()
    return folders, lacking


def test_every_node_has_the_same_or_no_run_begins(nodes, world, parts, tmp_path):
    folders, lacking = nodes
    out = tmp_path / "out"

    def both(second=None, **changes):
        options = {
            "data_path": "videos.json",
            "num_frames": 2,
            "max_steps": 1,
            "on_bad_sample": "skip",
            **FEW_PARTS,
            **changes,
        }
        return [flags(world, parts, out, **{**options, **(own or {})}) for own in ({}, second)]

    streamed = {"streaming": True, "shuffle_buffer": 1}
    runs = {
        "streamed": both(data_path=["videos.json", "shard.jsonl"], **streamed),
        "indexed": both(data_path=["videos.json", "shard.jsonl"]),
        "gone": both(data_path="one.jsonl", **streamed),
        "rate": both({"learning_rate": 0.5}, **streamed),
        "media": both(),
        "trains": both(**streamed),
    }
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    log = tmp_path / "log"
    code = run_ranks(list(map(str, (tmp_path / "runs.json", *folders))), 2, log, module=__name__)
    text = log.read_text()
    assert code == 0, text
    for rank in (0, 1):
        ended = {name: f"process {rank} ended {name} with {0 if name == 'trains' else 2}" for name in runs}
        # The processes write to one file, so a line may begin behind one that another has not ended yet.
        assert all(line in text for line in ended.values()), text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5, text
    assert all(line.startswith("error: process 1 on ") for line in errors), errors
    words = (
        ": --data_path shard.jsonl (has other content)",
        ": --data_path shard.jsonl (has other content)",
        ": one.jsonl: cannot be read",
        ": --learning_rate 0.5 (process 0: 0.002)",
        ": it alone leaves out videos.json: record ",
    )
    for line, part in zip(errors, words, strict=True):
        assert part in line, line
    # A stream does not shift where a video is missing: its record stays the sixth, which the second process reads.
    (bad,) = (json.loads(line)["problem"] for line in (out / "bad_samples-1.jsonl").read_text().splitlines())
    assert lacking.name in bad and not (out / "bad_samples-0.jsonl").exists()
