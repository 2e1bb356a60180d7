"""Registers the model with transformers as soon as transformers is imported, but does not import it.

``import videollama2`` must stay light, because the controller, the web server and help texts need no torch. After it,
however, the Auto classes of transformers must know the model. Registration therefore waits for the import of
transformers.

If that import comes from one of this package's own modules, the module is only half imported at that moment, and
registration would need names that it does not have yet. Both kinds of imports are therefore watched, and registration
runs after the outermost import in progress.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType

from videollama2 import garbage_collection

_PACKAGE = __name__.partition(".")[0]


class _AfterImports(importlib.abc.MetaPathFinder):
    """Lets imports of transformers and of this package run as usual, then imports the registering module."""

    def __init__(self) -> None:
        self._under_way = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "transformers" and not fullname.startswith(f"{_PACKAGE}."):
            return None
        spec = self._found_by_others(fullname, path, target)
        loader = None if spec is None else spec.loader
        if loader is not None and hasattr(loader, "exec_module"):
            load = loader.exec_module
            loader.exec_module = lambda module: self._load(load, module)  # type: ignore[method-assign]
        return spec

    def _found_by_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return what the finders after this one find. Python has already asked those before it."""
        finders = list(sys.meta_path)
        if self not in finders:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in finders[finders.index(self) + 1 :])
        return next((spec for spec in found if spec is not None), None)

    def _load(self, load: Callable[[ModuleType], None], module: ModuleType) -> None:
        with garbage_collection.paused():
            self._under_way.count = getattr(self._under_way, "count", 0) + 1
            try:
                load(module)
            finally:
                self._under_way.count -= 1
            if self._under_way.count == 0 and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module(f"{_PACKAGE}.auto")


def register_when_needed() -> None:
    """Register now if transformers is loaded, or else as soon as it is."""
    if "transformers" in sys.modules:
        with garbage_collection.paused():
            importlib.import_module(f"{_PACKAGE}.auto")
    else:
        sys.meta_path.insert(0, _AfterImports())
