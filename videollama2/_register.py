"""Registers the model with transformers when transformers is there, without importing it (and torch) before.

``import videollama2`` must stay light: controller, web server and help texts need no torch. But after it the Auto
classes of transformers must know the model. So registration waits until somebody imports transformers.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets ``import transformers`` run as ever, then imports :mod:`videollama2.auto`."""

    looking = False

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "transformers":
            return None
        if self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                sys.meta_path.remove(self)
                if not _importing_our_own():
                    importlib.import_module("videollama2.auto")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _importing_our_own() -> bool:
    """True while one of this package's modules is half imported: `auto` would ask it for names it has not yet."""
    ours = (module for name, module in list(sys.modules.items()) if name.startswith("videollama2."))
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in ours)


def register_when_needed() -> None:
    """Register now if transformers is loaded, else as soon as it is."""
    if "transformers" in sys.modules:
        importlib.import_module("videollama2.auto")
    else:
        sys.meta_path.insert(0, _AfterImport())
