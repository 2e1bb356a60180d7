"""The house keeps its shape: floors, light imports, no forbidden dependency, no Python beside the data."""

import ast
import graphlib
import importlib.util
import re
import subprocess
import sys
from functools import lru_cache

import pytest

from tests.conftest import ROOT

# ``model.encoders`` lies below the rest of ``model``: the configuration asks it which encoders there are.
# ``media.kinds`` lies below the rest of ``media``: prompts and models know the kinds of media, and no medium.
FLOORS = {
    0: (
        "garbage_collection",
        "errors",
        "constants",
        "config",
        "config_bounds",
        "flat_form",
        "part_configs",
        "towers",
        "audio_config",
        "flags",
        "commands",
        "ranks",
        "_register",
        "hub",
        *("model.encoders", "media.kinds"),
        "stand_ins",
        "hub_connection",
        "model_code",
        "quiet",
    ),
    1: ("prompting", "media", "model", "terminal_chat"),
    2: ("processing", "auto"),
    3: ("checkpoints", "data"),
    4: ("inference",),
    5: ("training", "eval", "serve", "shapes", "inspection"),
    6: ("ask", "doctor", "engines", "train", "mm_utils", "utils"),
    7: ("cli",),
    8: ("__main__",),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# A room may look into another on its own floor only where the design says so.
MAY_IMPORT = {
    "config": ("audio_config", "config_bounds", "constants", "errors", "flat_form", "hub", "model.encoders")
    + ("part_configs", "towers"),
    "flat_form": ("errors",),
    "part_configs": ("audio_config", "config_bounds", "errors", "model.encoders"),
    "towers": ("errors", "hub", "model.encoders"),
    "config_bounds": ("errors",),
    "audio_config": ("errors",),
    "hub": ("constants", "errors", "hub_connection", "stand_ins"),
    "model.encoders": ("audio_config", "errors"),
    "media.kinds": ("constants", "errors", "stand_ins"),
    "flags": ("constants", "errors"),
    "commands": ("garbage_collection", "errors", "quiet"),
    "_register": ("garbage_collection",),
    "ranks": ("errors",),
    "hub_connection": ("errors",),
    "auto": ("processing",),
}
# Inside a wing, a module imports only from earlier groups, or from its own folder.
WINGS = {
    "media": (
        ("arrays", "filter_bank", "frames", "kinds", "limits", "wave"),
        ("pixels", "sources"),
        ("image",),
        ("readers",),
        ("animation", "decord_reader", "pyav"),
        ("audio", "video"),
        ("probe",),
    ),
    "prompting": (("messages", "template"), ("prompt",), ("labels",)),
    "processing": (
        ("inputs", "open_parts", "options", "read_options", "video_options"),
        ("conversations", "placeholders"),
        ("rows", "sound"),
        ("media_reading",),
        ("processor",),
        ("video_processor",),
    ),
    "model": (
        ("linear",),
        ("int4", "int8", "stored"),
        ("connectors", "encoders", "weight_names", "loss", "packed_attention", "weight_files", "published_call"),
        ("base",),
        ("features", "generation"),
        ("modeling",),
    ),
    "checkpoints": (
        ("files", "placement"),
        ("fingerprint", "quantisation", "cpu_integers"),
        ("audio_tower",),
        ("full",),
        ("parts",),
        ("connector",),
        ("lora",),
        ("card", "write"),
        ("merge",),
    ),
    "serve": (
        ("long_text",),
        ("settings", "part_flags", "child_processes", "untrusted_media"),
        ("web",),
        ("api",),
        ("legacy",),
        ("cluster",),
        ("worker", "page"),
        ("entries",),
        ("controller", "model_worker", "openai_api", "gradio_web_server", "gradio_web_server_adhoc", "cli"),
        ("gradio_web_server_adhoc_av", "launch_checks"),
        ("launch",),
    ),
    "data": (
        ("formats", "order", "preferences"),
        ("caches", "record"),
        ("records", "samples"),
        ("dataset", "stream"),
        ("collator", "files_check", "packing"),
        ("check", "pairs"),
    ),
    "eval": (
        ("samples", "atomic", "controls", "annotations", "subtitles", "coverage"),
        ("measures",),
        ("items", "store"),
        ("downloads", "reading"),
        ("judging",),
        ("report",),
        ("benchmarks", "scoring"),
        ("running", "published_files"),
        ("rescore", "show"),
        ("commands",),
        ("cli",),
        ("__main__",),
    ),
    "training": (
        ("stale_locks", "rewards"),
        ("flags",),
        ("rules", "distributed"),
        ("arguments", "joint", "model"),
        ("run",),
        ("asking",),
        ("data", "reports"),
        ("nodes", "feature_command", "plan", "trainers"),
    ),
    "inference": (
        ("structure",),
        ("kv_cache", "sampling", "lru", "weights_watch", "sizes", "text_stream", "threads", "openmp"),
        ("answer", "request", "prefix_cache", "kernels", "generate_options"),
        ("back_end",),
        ("media",),
        ("task",),
        ("request_queue",),
        ("fixed_shapes",),
        ("decoder",),
        ("batch",),
        ("engine",),
        ("api",),
        ("chat",),
    ),
}
WITH_MODEL = ("model_worker", "gradio_web_server_adhoc", "gradio_web_server_adhoc_av")
PACKAGE = ROOT / "videollama2"


def room_of(parts):
    """The room a module is in: its first folder, or a part of it that has a floor of its own."""
    inner = ".".join(parts[:2])
    return inner if inner in FLOOR_OF else parts[0]


def rooms(path):
    """``videollama2/serve/web/app.py`` -> ``("serve", "web", "app")``."""
    return path.relative_to(PACKAGE).with_suffix("").parts


@lru_cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@lru_cache
def imports(path):
    """The modules of this package that a file imports, as parts of their names; names only types need are left out."""
    return list(_imports(parsed(path)))


def _imports(tree):
    types_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {inner for node in types_only for inner in ast.walk(node)}
    for node in (node for node in ast.walk(tree) if node not in skipped):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "videollama2":
            parts = tuple(node.module.split(".")[1:])
            names = [name.name for name in node.names]
            # The names may be modules of the package, or symbols of the module.
            is_package = (PACKAGE.joinpath(*parts) / "__init__.py").is_file()
            yield from ((*parts, name) for name in names) if is_package else (parts,)
        elif isinstance(node, ast.Import):
            yield from (tuple(n.name.split(".")[1:]) for n in node.names if n.name.startswith("videollama2."))


@pytest.mark.slow
def test_modules_import_only_from_lower_floors():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        here = room_of(rooms(path))
        if here == "__init__":
            continue
        assert here in FLOOR_OF, f"{path} has no floor"
        for there in map(room_of, imports(path)):
            if there == here or there not in FLOOR_OF or there in MAY_IMPORT.get(here, ()):
                continue
            if FLOOR_OF[there] >= FLOOR_OF[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {there}")
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.parametrize("wing", WINGS)
def test_inside_a_wing_modules_import_only_from_earlier_groups(wing):
    order = {room: number for number, group in enumerate(WINGS[wing]) for room in group}
    wrong = []
    for path in (PACKAGE / wing).rglob("*.py"):
        here = rooms(path)[1]
        if here == "__init__":
            continue
        assert here in order, f"{path.relative_to(ROOT)} has no place in the order of {wing}/"
        for there in imports(path):
            is_inside = there[0] == wing and len(there) > 1 and there[1] in order
            if is_inside and there[1] != here and order[there[1]] >= order[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {'.'.join(there)}")
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.parametrize("wing", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_inside_a_wing_modules_and_folders_import_each_other_in_no_circle(wing):
    needs = {}
    for path in (PACKAGE / wing).rglob("*.py"):
        here = rooms(path)[1]
        inside = {there[1] for there in imports(path) if there[0] == wing and len(there) > 1}
        needs.setdefault(here, set()).update(inside - {here, "__init__"})
    needs.pop("__init__", None)
    graphlib.TopologicalSorter(needs).prepare()  # raises an error that names the circle


def test_no_module_of_serve_is_called_like_a_package_elsewhere():
    """``python videollama2/serve/gradio_web_server_adhoc.py`` puts that folder on the path."""
    names = {path.stem for path in (PACKAGE / "serve").iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert not names & set(sys.stdlib_module_names)
    hidden = [n for n in names if importlib.util.find_spec(n) is not None]
    assert not hidden, hidden


@pytest.mark.slow
def test_functions_can_be_read_at_once():
    long = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long, long


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


def test_the_table_of_tests_has_a_row_for_each_wing():
    rows = set(re.findall(r"^\| `(\w+)/` \|", (ROOT / "tests" / "README.md").read_text(), re.MULTILINE))
    assert rows == {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}


def test_helpers_of_tests_have_one_name():
    """Beside tests and fixtures, a wing has ``helpers.py``, or modules in ``helpers/``."""
    tests = ROOT / "tests"
    others = [path.relative_to(tests) for path in tests.rglob("*.py") if not path.name.startswith("test_")]
    known = {"__init__.py", "conftest.py", "helpers.py"}
    strange = [path for path in others if path.name not in known and not {"helpers", "cases"} & set(path.parts[:-1])]
    assert not strange, strange


NONE_OF = "found = {!r} & {{name.split('.')[0] for name in sys.modules}}\nassert not found, found"


@pytest.mark.slow
def test_only_what_holds_a_model_imports_torch():
    """Controller, API, web page and terminal client start in a second and run where torch is not installed.

    The API, which starts first, imports nothing that reads videos or draws a page either.
    """
    serve = PACKAGE / "serve"
    names = {".".join(rooms(path)) for path in serve.rglob("*.py") if path.stem not in ("__init__", *WITH_MODEL)}
    assert {"serve.controller", "serve.openai_api", "serve.gradio_web_server", "serve.cli", "serve.launch"} <= names
    lines = [
        "import sys, videollama2.serve.openai_api",
        NONE_OF.format({"torch", "transformers", "av", "gradio"}),
        *(f"import videollama2.{name}" for name in sorted(names)),
        "videollama2.serve.gradio_web_server.build_parser()",
        NONE_OF.format({"torch", "transformers"}),
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
