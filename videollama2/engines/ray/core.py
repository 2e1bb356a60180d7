"""The package Ray. It is imported by name here, because type checkers take ``import ray`` for this folder."""

from __future__ import annotations

from importlib import import_module
from typing import Any

ray: Any = import_module("ray")
serve: Any = import_module("ray.serve")
