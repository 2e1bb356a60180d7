"""Runs offline batches: turns a file of requests into a file of answers.

    videollama2 batch requests.jsonl answers.jsonl --model-path videollama2-tiny
    videollama2 batch --folder clips captions.jsonl --question "Describe the video."
    torchrun --nproc_per_node 8 -m videollama2 batch requests.jsonl answers.jsonl
    videollama2 batch requests.jsonl answers.jsonl --engine ray

Requests are lines of OpenAI's batch files. They go through the worker's own application in this process, so that
answers, defaults and refusals are the same as from ``videollama2 serve``. Media are local: paths, ``file://`` and
``data:`` URLs.

Every answer is on disk before the next one is counted (:class:`~videollama2.eval.store.AnswerStore`, in the folder
``OUTPUT.work``), so that a run that was killed continues where it stopped. Several processes can share the work, and
with ``--engine ray`` one process hands it to the machines of a Ray cluster. The process that finds all answers there
writes the output, in the order of the input.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from videollama2.commands import add_debug_flag, hides_bar
from videollama2.engines.batch_lines import BatchLine, BatchReply, check_output, read_requests, write_replies
from videollama2.engines.local_service import LocalClient, local_service, name_of_model
from videollama2.errors import ConfigError
from videollama2.eval.samples import StoredAnswer
from videollama2.flags import (
    AnswerFlags,
    add_answer_flags,
    add_count_flag,
    add_model_flags,
    add_num_frames_flag,
    check_without_effect,
    frame_options,
    quantization_asked,
)
from videollama2.media.frames import FrameSampling
from videollama2.ranks import rank_and_world
from videollama2.serve.part_flags import add_reservation_flags
from videollama2.serve.worker.flags import (
    RAY,
    add_engine_choice,
    add_replica_engine_flag,
    check_engines_installed,
    check_own_engine,
)

WORK_SUFFIX = ".work"

OnAnswer = Callable[[StoredAnswer], None]
"""Called with each answer as soon as it is there."""


def add_batch_command(commands: Any) -> None:
    """Add ``videollama2 batch`` to the command line."""
    parser = commands.add_parser("batch", help="answer a file of requests, or one question about many media")
    parser.set_defaults(run=batch)
    parser.usage = "%(prog)s [flags] INPUT OUTPUT\n       %(prog)s [flags] --folder DIR --question TEXT [OUTPUT]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="INPUT OUTPUT",
        help="requests (.jsonl, .parquet), or a folder, path or pattern of media; and where the answers go (.jsonl or "
        ".parquet; with --folder, by default DIR.jsonl in the working folder)",
    )
    parser.take_words_anywhere("words")
    parser.add_argument("--folder", metavar="DIR", help="a folder of media, in place of INPUT")
    parser.add_argument("--question", metavar="TEXT", help="the question about every medium, if INPUT holds media")
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="name of the model in requests (default: any name is accepted)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="ask requests again that ended with an error")
    add_model_flags(parser, device_help="default: cuda of this process's number, else mps, else cpu")
    media = parser.add_argument_group("defaults of requests")
    add_num_frames_flag(media)
    add_answer_flags(media, max_new_tokens=None, max_new_tokens_help="longest answer (default: as many as fit)")
    engine = parser.add_argument_group("engine")
    add_engine_choice(engine, has_ray=True)
    engine.add_argument(
        "--max-batch", type=int, metavar="N", help="answers computed together (default: as many as fit)"
    )
    engine.add_argument("--max-length", type=int, metavar="N", help="longest prompt with its answer, in tokens")
    _add_replicas(parser)
    add_debug_flag(parser)


def _add_replicas(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("replicas on a Ray cluster")
    add_replica_engine_flag(group)
    add_count_flag(group, "--max-replicas", "copies of the model (default: as many as fit on the cluster)")
    add_reservation_flags(group)


def batch(args: argparse.Namespace) -> int:
    """Run the command; return 0 if every request was answered, 1 if some ended with an error.

    Raises:
        DataError, ConfigError: the input or output cannot be used. CheckpointError: there is no such model.
    """
    from videollama2.eval.store import AnswerStore

    rank, world = rank_and_world()
    source, output = _files(args)
    _check_engine(args, world)
    _check_defaults(args)
    lines = [replace(line, body=_with_defaults(line.body, args)) for line in read_requests(source, args.question)]
    about = {"input": source, "model": args.model_path}
    store = AnswerStore(output.with_name(output.name + WORK_SUFFIX), _configuration(args, lines), about)
    mine = lines[rank::world]
    with store.shard(rank, world) as shard:
        known = store.read()  # we hold the shard, so no other process answers its requests now
        failed = {name for name, answer in known.items() if answer.error is not None}
        waiting = [line for line in mine if line.custom_id not in known or _is_again(line, failed, args)]
        if waiting:
            with _bar(len(mine), len(mine) - len(waiting)) as bar:

                def keep(answer: StoredAnswer) -> None:
                    shard.append(answer)
                    bar.update()

                _answer_all(args, waiting, keep)
    return _finish(store, lines, output)


def _files(args: argparse.Namespace) -> tuple[str, Path]:
    """Return INPUT and OUTPUT of a command line.

    Raises:
        ConfigError: one of them is missing, or there are too many words.
    """
    words = args.words
    if args.folder is not None:
        if not Path(args.folder).is_dir():
            raise ConfigError(f"--folder: {args.folder} is not a folder")
        words = [args.folder, *(words or [f"{Path(args.folder).resolve().name}.jsonl"])]
    if len(words) != 2:
        expected = "INPUT and OUTPUT" if args.folder is None else "at most one file, OUTPUT, beside --folder"
        raise ConfigError(f"batch takes {expected}, got {' '.join(args.words) or 'nothing'}")
    source, output = words[0], Path(words[1])
    check_output(output)
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise ConfigError(f"{output} is INPUT too: answers need a file of their own")
    return source, output


def _check_defaults(args: argparse.Namespace) -> None:
    """Check the defaults of requests. Otherwise every request would be refused, one by one."""
    AnswerFlags.of(args)
    FrameSampling(**frame_options(args))


def _configuration(args: argparse.Namespace, lines: Sequence[BatchLine]) -> dict[str, Any]:
    """Return everything on which answers depend, except machines and engines: their answers are the same."""
    from videollama2.checkpoints.fingerprint import model_revision

    return {
        "model": name_of_model(args),
        "model_revision": model_revision(args.model_path, args.model_base),
        "dtype": args.dtype,
        "quantization": quantization_asked(vars(args)),
        "requests": _digest(lines),
    }


def _check_engine(args: argparse.Namespace, world: int) -> None:
    """Check the flags of the engine, and that the package of an engine of another project is installed."""
    runs = args.replica_engine if args.engine == RAY else args.engine
    if args.engine != RAY:
        check_without_effect(args, _add_replicas, "only with --engine ray")
    elif world > 1:
        raise ConfigError("--engine ray shares the work among the machines of its cluster; start one process")
    if runs == "own":
        check_own_engine(args)
    else:
        from videollama2.engines.vllm.engine import check_flags

        check_flags(args)
    check_engines_installed((args.engine, runs))


def _answer_all(args: argparse.Namespace, lines: Sequence[BatchLine], on_answer: OnAnswer) -> None:
    if args.engine == RAY:
        from videollama2.engines.ray.batch import answer_on_cluster

        answer_on_cluster(args, lines, on_answer)
    else:
        with local_service(args) as service:
            asyncio.run(_answer_here(service, lines, on_answer))


def _bar(total: int, done: int) -> tqdm[Any]:
    return tqdm(total=total, initial=done, desc="answering", unit="request", disable=hides_bar(True))


def _is_again(line: BatchLine, failed: set[str], args: argparse.Namespace) -> bool:
    return args.retry_failed and line.custom_id in failed


def _finish(store: Any, lines: Sequence[BatchLine], output: Path) -> int:
    """Write the output if all answers are there, and print a summary."""
    # Every process looks whether all is answered when it is done. The last one to finish finds no gap, and writes.
    answers, missing = store.merge([line.custom_id for line in lines])
    if missing:
        print(f"{len(answers)} of {len(lines)} requests are done; other processes have the rest", file=sys.stderr)
        return 0
    failures = sum(answer.error is not None for answer in answers)
    with store.merging() as is_mine:  # two may have finished at the same moment
        if is_mine:
            write_replies(output, [_reply_of(answer) for answer in answers])
    print(f"{len(lines) - failures} of {len(lines)} requests answered, {failures} with an error: {output}")
    return 1 if failures else 0


def _reply_of(answer: Any) -> BatchReply:
    stored = json.loads(answer.output)
    return BatchReply(answer.id, stored["status"], stored["body"])


def _with_defaults(body: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the body with the command's flags as defaults for missing fields."""
    given: dict[str, Any] = {"temperature": args.temperature or None, "top_p": args.top_p, "seed": args.seed}
    if not {"max_tokens", "max_completion_tokens"} & body.keys():
        given["max_tokens"] = args.max_new_tokens
    filled = {**{name: value for name, value in given.items() if value is not None}, **body}
    frames = frame_options(args)
    own = body.get("mm_processor_kwargs")
    if frames and (own is None or isinstance(own, dict)):  # anything else is refused with the request
        filled["mm_processor_kwargs"] = {**frames, **(own or {})}
    if args.served_model_name is None:
        filled["model"] = name_of_model(args)
    return filled


def _digest(lines: Sequence[BatchLine]) -> str:
    """Return a hash of all requests, so that different requests count as a different run."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps([line.custom_id, line.url, line.body], sort_keys=True).encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------- answering


async def _answer_here(service: Any, lines: Sequence[BatchLine], on_answer: OnAnswer) -> None:
    """Send all requests, as many at a time as keep the engine busy; call ``on_answer`` with each reply."""
    async with LocalClient(service) as answering:

        async def answer(line: BatchLine) -> None:
            try:
                on_answer(await answering.answer(line))
            finally:
                answering.free.release()

        asking: set[asyncio.Task[None]] = set()
        try:
            for line in lines:
                await answering.free.acquire()
                _raise_from(asking)
                asking.add(asyncio.create_task(answer(line)))
            await asyncio.gather(*asking)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


def _raise_from(asking: set[asyncio.Task[None]]) -> None:
    """Forget finished tasks. An error in one of them (for example a full disk) ends the run."""
    for task in [task for task in asking if task.done()]:
        asking.remove(task)
        task.result()
