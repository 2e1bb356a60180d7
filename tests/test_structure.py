"""The house keeps its shape: floors, light imports, no forbidden dependency, no Python beside the data."""

import ast
import re
import subprocess
import sys

from tests.conftest import ROOT

FLOORS = {
    "errors": 0,
    "constants": 0,
    "config": 0,
    "_register": 0,
    "model_flags": 0,
    "flag_types": 0,
    "prompting": 1,
    "media": 1,
    "model": 1,
    "terminal_chat": 1,
    "processing": 2,
    "loading": 2,
    "auto": 2,
    "data": 2,
    "inference": 3,
    "training": 4,
    "eval": 4,
    "serve": 4,
    "cli": 5,
    "train": 5,
    "__main__": 6,
}
# One room may look into another on its floor where the table of the design says so.
ALLOWED = {
    ("config", "errors"),
    ("config", "constants"),
    ("model_flags", "constants"),
    ("loading", "processing"),
    ("loading", "auto"),
    ("auto", "processing"),
    ("data", "processing"),
}
WITH_MODEL = ("model_worker", "gradio_web_server_adhoc")
PACKAGE = ROOT / "videollama2"


def room(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("videollama2."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "videollama2":
            yield from (name.name for name in node.names if name.name in FLOORS)
        elif isinstance(node, ast.Import):
            yield from (n.name.split(".")[1] for n in node.names if n.name.startswith("videollama2."))


def test_modules_import_only_from_lower_floors():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        here = room(path)
        if here == "__init__":
            continue
        assert here in FLOORS, f"{path} has no floor"
        for there in imports(path):
            if there != here and FLOORS[there] >= FLOORS[here] and (here, there) not in ALLOWED:
                wrong.append(f"{path.relative_to(ROOT)} imports {there}")
    assert not wrong, wrong


def test_no_python_file_hides_other_packages():
    """A package named `datasets` would hide the Hugging Face one."""
    assert not [*(ROOT / "datasets").rglob("*.py"), *(ROOT / "eval").rglob("*.py")]


def test_nothing_pulls_torchvision():
    """Its wheel breaks a CPU-only torch; timm depends on it."""
    for name in ("setup.py", "requirements.txt"):
        lines = [line.split("#")[0] for line in (ROOT / name).read_text().splitlines()]
        assert not re.search(r"torchvision|timm", "\n".join(lines)), name
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (torchvision|timm)\b", path.read_text(), re.M), path


def test_torch_is_pinned_the_same_everywhere():
    assert '"torch==2.13.0"' in (ROOT / "setup.py").read_text()
    assert "torch==2.13.0\n" in (ROOT / "requirements.txt").read_text()


def test_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\b(?:scripts|benchmarks|datasets|eval|videollama2|tests)/[\w./-]+", text):
        path = path.rstrip("./")
        assert (ROOT / path).exists(), f"README.md names {path}"


def test_only_what_holds_a_model_imports_torch():
    """Controller, API, web page and terminal client start in a second and run where torch is not installed."""
    serve = PACKAGE / "serve"
    names = sorted(path.stem for path in serve.glob("*.py") if path.stem not in ("__init__", *WITH_MODEL))
    assert {"controller", "openai_api", "gradio_web_server", "cli", "launch"} <= set(names)
    imports = "\n".join(f"import videollama2.serve.{name}" for name in names)
    check = "import sys\nheavy = {'torch', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", f"{imports}\n{check}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
