"""The model on Ray Serve: ``pip install 'videollama2[ray]'``, then

    serve run videollama2.engines.ray:app model_path=FOLDER max_replicas=4
    videollama2 serve --engine ray --model-path FOLDER --max-replicas 4

Ray Serve places copies of a model (replicas) on the machines of a cluster, starts more while many requests are running,
and replaces those that die. A replica is this package's worker, with its own engine or with vLLM. In front of the
replicas stands this package's API, which sends a request to the replica that has its media cached, and to another one
if that dies before its first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: Mapping[str, Any]) -> Application:
    """Build the application; called by ``serve run`` and ``serve deploy``.

    Args:
        args: flags of ``videollama2 serve`` by name, such as ``model_path``, ``engine`` (``own`` or ``vllm``) and
            ``max_replicas``. For several models, ``models`` is a list of such mappings; what stands beside it holds
            for all of them.

    Raises:
        ConfigError: there is no such flag, or a value is invalid.
    """
    from videollama2.engines.ray.deployments import application
    from videollama2.engines.ray.settings import read_models

    return application(read_models(args))
