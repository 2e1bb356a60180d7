"""Writes the code beside a saved model, with which it opens where this package is not installed.

A folder with code has, beside weights and tokenizer, the file :data:`ENTRY`, one copy of each module that opening and
running the model needs, and an ``auto_map`` in ``config.json`` that leads transformers' Auto classes to the entry::

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

transformers copies only files that lie directly in the folder and that the entry names in relative imports. The module
``videollama2.media.video`` is therefore stored as ``videollama2__media__video.py``, and the package
``videollama2.media`` as ``videollama2__media____init__.py``. The entry names them all and makes them importable under
their own names. If the package is installed, the entry uses the package.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

PROCESSOR_CONFIG = "processor_config.json"
ENTRY = "modeling_videollama2.py"

_ROOT = Path(__file__).parent
_PACKAGE = __name__.partition(".")[0]
_NEEDED = (_PACKAGE, f"{_PACKAGE}.auto")
"""Registering with transformers needs configuration, model and processor, and these all else."""

_MODEL = "VideoLlama2ForConditionalGeneration"
_AUTO_MAPS = {
    "config.json": {
        "AutoConfig": "VideoLlama2Config",
        "AutoModel": "VideoLlama2Model",
        "AutoModelForImageTextToText": _MODEL,
        "AutoModelForMultimodalLM": _MODEL,
    },
    # If the processor were named in config.json alone, AutoProcessor would fall back to the tokenizer in silence.
    PROCESSOR_CONFIG: {"AutoProcessor": "VideoLlama2Processor"},
}

_ENTRY_TEXT = '''"""The model of this folder, for transformers with ``trust_remote_code=True``.

videollama2 {version} wrote this file.
"""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers copies the files that are named here
{imports}


class _ModulesBeside(MetaPathFinder):
    """Finds the module ``{package}.a.b`` in the file ``{package}__a__b.py`` beside this one, and packages likewise."""

    folder = Path(__file__).parent

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] != "{package}":
            return None
        for suffix, inside in (("____init__.py", []), (".py", None)):
            file = self.folder / (fullname.replace(".", "__") + suffix)
            if file.is_file():
                return importlib.util.spec_from_file_location(fullname, file, submodule_search_locations=inside)
        return None


if importlib.util.find_spec("{package}") is None:
    sys.meta_path.insert(0, _ModulesBeside())

# transformers would ask for an installed package {package} if this were written with import statements.
VideoLlama2Config = importlib.import_module("{package}.config").VideoLlama2Config
_modeling = importlib.import_module("{package}.model.modeling")
VideoLlama2ForConditionalGeneration = _modeling.VideoLlama2ForConditionalGeneration
VideoLlama2Model = _modeling.VideoLlama2Model
VideoLlama2Processor = importlib.import_module("{package}.processing").VideoLlama2Processor
'''


def write_code(folder: str | Path) -> None:
    """Write the entry and the modules into ``folder``, and an ``auto_map`` into its ``config.json``."""
    folder = Path(folder)
    copies = {_stem(name, file): file for name, file in needed_modules().items()}
    for stem, file in copies.items():
        (folder / f"{stem}.py").write_bytes(file.read_bytes())
    imports = "\n".join(f"    from .{stem} import __name__  # noqa: F401" for stem in copies)
    text = _ENTRY_TEXT.format(version=_version(), package=_PACKAGE, imports=imports)
    (folder / ENTRY).write_text(text, encoding="utf-8")
    for name, autos in _AUTO_MAPS.items():
        _add_auto_map(folder / name, autos)


def _add_auto_map(path: Path, classes: dict[str, str]) -> None:
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    fields["auto_map"] = {auto: f"{ENTRY.removesuffix('.py')}.{name}" for auto, name in classes.items()}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def needed_modules() -> dict[str, Path]:
    """Return the modules that opening and running a model needs, by name, sorted; found by following their imports."""
    found: dict[str, Path] = {}
    waiting = list(_NEEDED)
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if file is None or name in found:
            continue
        found[name] = file
        waiting += [name.rpartition(".")[0], *_imports(file)]
    return dict(sorted(found.items()))


def _imports(file: Path) -> list[str]:
    """Return what a module imports of this package while it is imported or called, names of members included.

    What a package offers on demand (``__getattr__``, imports for type checkers alone) is not among it.
    """
    names: list[str] = []
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            waiting += ast.iter_child_nodes(node)
    return [name for name in names if name.partition(".")[0] == _PACKAGE]


def _file_of(module: str) -> Path | None:
    """Return the file of a module of this package, or None for a name that is none."""
    if module.partition(".")[0] != _PACKAGE:
        return None
    place = _ROOT.joinpath(*module.split(".")[1:])
    return next((file for file in (place / "__init__.py", Path(f"{place}.py")) if file.is_file()), None)


def _stem(module: str, file: Path) -> str:
    return module.replace(".", "__") + ("____init__" if file.name == "__init__.py" else "")


def _version() -> str:
    from videollama2 import __version__

    return __version__
