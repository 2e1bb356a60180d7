"""Offline batches: turns a file of requests into a file of answers.

    videollama2 batch requests.jsonl answers.jsonl --model-path videollama2-tiny
    videollama2 batch clips/ captions.jsonl --question "Describe the video."
    torchrun --nproc_per_node 8 -m videollama2 batch requests.jsonl answers.jsonl

Requests are lines of OpenAI's batch files. They go through the worker's own application in this process, so that
answers, defaults and refusals are the same as from ``videollama2 serve``. Media are local: paths, ``file://`` and
``data:`` URLs.

Every answer is on disk before the next one is counted (:class:`~videollama2.eval.store.AnswerStore`, in the folder
``OUTPUT.work``), so that a run that was killed continues where it stopped. Several processes can share the work. The
process that finds all answers there writes the output, in the order of the input.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from videollama2.commands import add_debug_flag, hides_bar
from videollama2.engines.batch_lines import BatchLine, BatchReply, read_requests, write_replies
from videollama2.errors import MissingDependencyError
from videollama2.eval.samples import StoredAnswer
from videollama2.flags import add_answer_flags, add_model_flags, add_num_frames_flag, frame_options, model_options
from videollama2.ranks import own_device, rank_and_world

WORK_SUFFIX = ".work"

_SERVE_HINT = "videollama2 batch needs the packages of serving: pip install 'videollama2[serve]'"


def add_batch_command(commands: Any) -> None:
    """Add ``videollama2 batch`` to the command line."""
    parser = commands.add_parser("batch", help="answer a file of requests, or one question about many media")
    parser.set_defaults(run=batch)
    parser.add_argument("input", metavar="INPUT", help="requests (.jsonl, .parquet), a folder of media, or a pattern")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="answers (.jsonl or .parquet)")
    parser.add_argument("--question", metavar="TEXT", help="what to ask about every medium where INPUT holds media")
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="what requests call the model (default: whatever they call it)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="ask again what ended with an error before")
    add_model_flags(parser, device_help="default: cuda of this process's number, else mps, else cpu")
    media = parser.add_argument_group("requests that do not say")
    add_num_frames_flag(media)
    add_answer_flags(media, max_new_tokens=None, max_new_tokens_help="longest answer (default: as many as fit)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine", choices=("own", "vllm"), default="own", help="what answers (default %(default)s)")
    engine.add_argument("--max-batch", type=int, metavar="N", help="answers computed together (default: what fits)")
    engine.add_argument("--max-length", type=int, metavar="N", help="tokens of a prompt with its answer")
    add_debug_flag(parser)


def batch(args: argparse.Namespace) -> int:
    """Run the command; return 0 if every request was answered, 1 if some ended with an error.

    Raises:
        DataError, ConfigError: the input or output cannot be used. CheckpointError: there is no such model.
    """
    from videollama2.eval.store import AnswerStore

    rank, world = rank_and_world()
    lines = [replace(line, body=_with_defaults(line.body, args)) for line in read_requests(args.input, args.question)]
    store = AnswerStore(
        args.output.with_name(args.output.name + WORK_SUFFIX),
        {"model": args.model_path, "base": args.model_base, "requests": _digest(lines)},
        {"input": args.input},
    )
    known = store.read()
    failed = {name for name, answer in known.items() if answer.error is not None}
    waiting = [line for line in lines[rank::world] if line.custom_id not in known or _is_again(line, failed, args)]
    if waiting:
        with store.shard(rank, world) as shard, _service(args) as service:
            asyncio.run(_answer_all(service, waiting, shard.append, len(lines[rank::world])))
    return _finish(store, lines, args.output)


def _is_again(line: BatchLine, failed: set[str], args: argparse.Namespace) -> bool:
    return args.retry_failed and line.custom_id in failed


def _finish(store: Any, lines: Sequence[BatchLine], output: Path) -> int:
    """Write the output if all answers are there, and print a summary."""
    with store.merging() as is_mine:
        answers, missing = store.merge([line.custom_id for line in lines])
        failures = sum(answer.error is not None for answer in answers)
        if is_mine and not missing:
            write_replies(output, [_reply_of(answer) for answer in answers])
    if missing:
        print(f"{len(answers)} of {len(lines)} requests are done; other processes have the rest", file=sys.stderr)
        return 0
    print(f"{len(lines) - failures} of {len(lines)} requests answered, {failures} with an error: {output}")
    return 1 if failures else 0


def _reply_of(answer: Any) -> BatchReply:
    stored = json.loads(answer.output)
    return BatchReply(answer.id, stored["status"], stored["body"])


def _name_of(args: argparse.Namespace) -> str:
    return args.served_model_name or Path(args.model_path).name


def _with_defaults(body: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the body with the command's flags as defaults for missing fields."""
    given: dict[str, Any] = {"temperature": args.temperature or None, "top_p": args.top_p, "seed": args.seed}
    if not {"max_tokens", "max_completion_tokens"} & body.keys():
        given["max_tokens"] = args.max_new_tokens
    filled = {**{name: value for name, value in given.items() if value is not None}, **body}
    frames = frame_options(args)
    if frames:
        filled["mm_processor_kwargs"] = {**frames, **(body.get("mm_processor_kwargs") or {})}
    if args.served_model_name is None:
        filled["model"] = _name_of(args)
    return filled


def _digest(lines: Sequence[BatchLine]) -> str:
    """Return a hash of all requests, so that different requests count as a different run."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps([line.custom_id, line.url, line.body], sort_keys=True).encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------- answering


@contextmanager
def _service(args: argparse.Namespace) -> Iterator[Any]:
    """Run a worker's service in this process.

    Raises:
        MissingDependencyError: the packages for serving are not installed.
    """
    try:
        from videollama2.serve.settings import MediaPolicy
        from videollama2.serve.untrusted_media.sandbox import Sandbox
        from videollama2.serve.worker.app import WorkerService
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_SERVE_HINT) from error
    # The requests are the user's own, so they may name any file on this machine.
    policy = MediaPolicy(media_root=Path("/"), max_bytes=4 << 30)
    with _engine(args) as engine, closing(Sandbox.of(policy, engine.processor)) as sandbox:
        yield WorkerService(engine, _name_of(args), policy, sandbox)


def _engine(args: argparse.Namespace) -> AbstractContextManager[Any]:
    """Open the engine that the flags ask for.

    Raises:
        MissingDependencyError: its package is not installed. ConfigError: a flag has no meaning for it.
    """
    sizes = {"max_batch": args.max_batch, "max_length": args.max_length}
    if args.engine == "vllm":
        from videollama2.engines.vllm.engine import VllmEngine, check_flags

        check_flags(args)
        return VllmEngine(args.model_path, **sizes, **({} if args.dtype is None else {"dtype": args.dtype}))
    from videollama2.inference.api import model_init
    from videollama2.inference.engine import Engine

    options = model_options(args)
    options["device"] = options["device"] or own_device()
    model, processor, _ = model_init(args.model_path, **options)
    return Engine(model, processor, **sizes)


async def _answer_all(
    service: Any, lines: Sequence[BatchLine], on_answer: Callable[[StoredAnswer], None], total: int
) -> None:
    """Send all requests, as many at a time as keep the engine busy; call ``on_answer`` with each reply."""
    import httpx

    from videollama2.serve.settings import Security
    from videollama2.serve.worker.app import make_worker_app

    transport = httpx.ASGITransport(app=make_worker_app(service, Security(max_body_bytes=6 << 30)))
    # Enough requests to refill the running batch while its oldest answer is still being generated.
    free = asyncio.Semaphore(min(3 * service.engine.max_batch, service.engine.max_queue))
    done = total - len(lines)
    with tqdm(total=total, initial=done, desc="answering", unit="request", disable=hides_bar(True)) as bar:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:

            async def answer(line: BatchLine) -> None:
                try:
                    reply = await client.post(line.url, json=line.body)
                    on_answer(_stored(line, reply.status_code, reply.json()))
                    bar.update()
                finally:
                    free.release()

            asking: set[asyncio.Task[None]] = set()
            try:
                for line in lines:
                    await free.acquire()
                    _raise_from(asking)
                    task = asyncio.create_task(answer(line))
                    asking.add(task)
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


def _stored(line: BatchLine, status: int, body: dict[str, Any]) -> StoredAnswer:
    error = None if status < 400 else str(body.get("error", {}).get("message", f"status {status}"))
    return StoredAnswer(line.custom_id, json.dumps({"status": status, "body": body}), error)
