"""Runs a worker whose engine is vLLM, with the flags of ``videollama2.serve.model_worker``.

    python -m videollama2.engines.vllm.worker --engine vllm --controller http://localhost:10000 --port 40000 \\
        --worker http://localhost:40000 --model-path FOLDER --tensor-parallel-size 2
"""

from __future__ import annotations

import argparse
import sys

from videollama2.engines.vllm.engine import VllmEngine, vllm_options
from videollama2.serve.model_worker import main


def open_vllm_engine(args: argparse.Namespace) -> VllmEngine:
    """Start vLLM with the flags of :func:`videollama2.serve.worker.flags.add_worker_flags`.

    Raises:
        ConfigError: a flag has no meaning for vLLM.
        MissingDependencyError, CheckpointError, EngineError: see :class:`VllmEngine`.
    """
    return VllmEngine(
        args.model_path,
        max_batch=args.limit_model_concurrency,
        max_length=args.max_length,
        max_queue=args.max_queue,
        **vllm_options(args),
    )


if __name__ == "__main__":
    sys.exit(main(open_engine=open_vllm_engine))
