"""What is around the code: distributions are whole, containers start what exists, the notebook runs."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module

import pytest
import yaml

from tests.conftest import ROOT
from tests.helpers.forked import run_python
from videollama2 import __version__

TRACKED_ELSEWHERE = {".gitignore", "pyproject.toml", "setup.py", "MANIFEST.in"}
"""Files that a source distribution has in any case, or has no use for."""


def tracked():
    """Files of the repository; None where it is not a checkout."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return (
        [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()] if done.returncode == 0 else None
    )


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Names of the files in a source distribution and in a wheel, and the wheel's metadata."""
    names = tracked()
    if not names:
        pytest.skip("distributions are made from a checkout")
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    commands = [word for name in ("sdist", "bdist_wheel") for word in (name, "--dist-dir", str(out))]
    done = subprocess.run([sys.executable, "setup.py", "-q", *commands], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        wheel = set(archive.namelist())
        metadata = archive.read(f"videollama2-{__version__}.dist-info/METADATA").decode()
    return names, source, wheel, metadata


@pytest.mark.slow
def test_the_source_distribution_is_whole(distributions):
    names, source, _, _ = distributions
    assert set(names) - source - TRACKED_ELSEWHERE == set()


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    names, _, wheel, metadata = distributions
    info = f"videollama2-{__version__}.dist-info"
    assert {name for name in names if name.startswith("videollama2/")} == {
        name for name in wheel if not name.startswith(info)
    }
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= wheel
    for line in ("Project-URL: Paper, ", "Classifier: Typing :: Typed", "Provides-Extra: all", "License: Apache-2.0"):
        assert line in metadata, line


@pytest.mark.slow
def test_the_extra_of_everything_holds_the_others(distributions):
    *_, metadata = distributions
    needs = {}
    for need, extra in re.findall(r'^Requires-Dist: (.+?); extra == "(\w+)"$', metadata, re.MULTILINE):
        needs.setdefault(extra, set()).add(need)
    parts = ("train", "data", "eval", "serve", "structured", "completion")
    assert needs["all"] == set().union(*(needs[name] for name in parts))


def test_the_image_pins_the_torch_of_the_package():
    (pin,) = set(re.findall(r"torch==([\d.]+)", (ROOT / "Dockerfile").read_text()))
    assert f'"torch=={pin}"' in (ROOT / "setup.py").read_text()


@pytest.mark.slow
def test_the_image_installs_extras_that_exist(distributions):
    *_, metadata = distributions
    known = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    for extras in re.findall(r"\$\{wheel\}\[(.+?)\]", (ROOT / "Dockerfile").read_text()):
        assert set(extras.split(",")) <= known


@pytest.mark.slow
def test_the_space_installs_what_exists(distributions):
    from packaging.requirements import Requirement

    *_, metadata = distributions
    folder = ROOT / "docs" / "space"
    head = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio" and (folder / head["app_file"]).is_file()
    (gradio,) = re.findall(r'^Requires-Dist: (gradio.+?); extra == "serve"$', metadata, re.MULTILINE)
    assert Requirement(gradio).specifier.contains(head["sdk_version"])
    own = Requirement((folder / "requirements.txt").read_text().strip())
    assert own.name == "videollama2" and own.specifier.contains(__version__)
    assert own.extras <= set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))


def services():
    text = (ROOT / "compose.yaml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)  # the defaults
    return yaml.safe_load(re.sub(r"\$\{\w+:\?[^}]*\}", "secret", text))["services"]


def test_compose_starts_controller_workers_api_and_page():
    modules = sorted(service["entrypoint"][-1].rpartition(".")[2] for service in services().values())
    assert modules == ["controller", "gradio_web_server", "model_worker", "model_worker", "openai_api"]


@pytest.mark.parametrize("name", services())
def test_compose_gives_flags_that_its_parts_take(name):
    service = services()[name]
    python, dash_m, module = service["entrypoint"]
    args = import_module(module).build_parser().parse_args(list(map(str, service["command"])))
    assert (python, dash_m, args.host) == ("python", "-m", "0.0.0.0")
    if name != "controller":
        assert args.controller == "http://controller:10000"
        assert service["depends_on"]["controller"]["condition"] == "service_healthy"
    if name.startswith("worker"):
        assert args.worker == f"http://{name}:{args.port}", "the name under which others reach it"
    assert {"VIDEOLLAMA2_API_KEY", "VIDEOLLAMA2_WORKER_TOKEN"} <= service["environment"].keys()
    for published in service.get("ports", ()):
        assert published.startswith("127.0.0.1:") and published.endswith(f":{args.port}")


def test_compose_for_gpus_is_about_the_workers():
    extra = yaml.safe_load((ROOT / "compose.cuda.yaml").read_text())["services"]
    assert set(extra) == {name for name in services() if name.startswith("worker")}


def test_continuous_integration_runs_what_everybody_runs():
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"
    assert "2406.07476" in citation["preferred-citation"]["url"]


def test_reports_of_problems_ask_for_the_doctor():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    assert any("videollama2 doctor" in part["attributes"]["label"] for part in form["body"])
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text())


def test_the_notebook_runs():
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    done = run_python(["-c", "\n".join(code)])
    assert done.returncode == 0, done.stderr
    for words in ("parameters, 8 frames of a video", "yellow", "three", "the red circle", "cross"):
        assert words in done.stdout, done.stdout
    prose = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        assert (ROOT / "docs" / target).exists(), target
