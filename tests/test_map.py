"""The map in CONTRIBUTING.md, the README and the pages of docs/ name only what exists, and every folder."""

import ast
import re

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "videollama2"


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_pages_name_only_what_exists(name):
    text = (ROOT / name).read_text()
    for path in re.findall(r"\b(?:scripts|benchmarks|datasets|eval|videollama2|tests)/[\w./-]+", text):
        path = path.rstrip("./")
        assert (ROOT / path).exists() or (PACKAGE / path).exists(), f"{name} names {path}"


MAP = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_map_names_only_files_and_names_that_exist():
    """A step of a life reads ``eval/running/run.py`` (`run`): the file, and what to look for in it."""
    wrong = []
    for path, names in re.findall(r"`([\w/]+\.py)`(?:\s+\(((?:`[\w.]+`(?:, )?)+))?", MAP):
        file = next((place / path for place in (PACKAGE, ROOT) if (place / path).is_file()), None)
        # Beside the path of a file of the same folder, a name stands alone.
        if file is None and not ("/" not in path and list(PACKAGE.rglob(path))):
            wrong.append(path)
        for name in re.findall(r"`([\w.]+)`", names):
            assert file is not None, name
            if not defines(ast.parse(file.read_text(encoding="utf-8")), name.split(".")):
                wrong.append(f"{path}: {name}")
    assert not wrong, wrong


def defines(node, names):
    """Whether a module or class defines a class or function by that name, or a method by ``Class.method``."""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    inner = [each for each in node.body if isinstance(each, kinds) and each.name == names[0]]
    return any(len(names) == 1 or defines(each, names[1:]) for each in inner)


def test_the_map_names_every_folder_of_the_package():
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert not [folder for folder in folders if f"`{folder.as_posix()}/`" not in MAP]
