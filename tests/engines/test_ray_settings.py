"""The flags of the application on Ray Serve, by name and on the command line, and the manifest. No Ray is needed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="serving needs the extra serve")

import yaml

from tests.conftest import ROOT
from videollama2.constants import DEFAULT_MODEL_NAME
from videollama2.engines.ray.server import build_parser, models_of
from videollama2.engines.ray.settings import read_models
from videollama2.errors import ConfigError


def test_flags_by_name() -> None:
    shared = {"max_replicas": "4", "engine_option": {"quantization": "fp8"}, "log_prompts": "true"}
    models = [{"model_path": "/models/a", "engine": "vllm", "tensor_parallel_size": 2}, {"model_path": "b"}]
    first, second = read_models({**shared, "models": models})
    assert (first.model_name, first.engine, first.tensor_parallel_size) == ("a", "vllm", 2)
    assert (second.model_name, second.engine, second.max_replicas) == ("b", "own", 4)
    assert first.log_prompts is True and list(first.engine_option) == ["quantization=fp8"]
    assert read_models({})[0].model_path == DEFAULT_MODEL_NAME
    assert read_models({"log_prompts": False, "allowed_media_hosts": ["a", "b"]})[0].allowed_media_hosts == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"no_such_flag": 1}, "no-such-flag"),
        ({"max_replicas": 0}, "at least 1"),
        ({"log_prompts": "perhaps"}, "log_prompts: expected true or false"),
        ({"models": []}, "models: expected a list"),
        ({"models": [{"model_path": "x/a"}, {"model_path": "y/a"}]}, "two models have one name"),
    ],
)
def test_flags_that_are_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_models(given)


def test_the_command_line_has_the_same_flags() -> None:
    args = build_parser().parse_args(["--model-path", "a", "--model-path", "b", "--max-replicas", "3"])
    by_name = read_models({"max_replicas": 3, "models": [{"model_path": "a"}, {"model_path": "b"}]})
    for found, wanted in zip(models_of(args), by_name, strict=True):
        assert {name: getattr(found, name) for name in vars(wanted)} == vars(wanted)


# ------------------------------------------------------------------------------------------------------------ manifest


def test_the_manifest_for_kubernetes() -> None:
    """The fields that KubeRay documents; test_ray.py has Serve itself check its part."""
    manifest = yaml.safe_load((ROOT / "docs" / "ray-service.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    spec = manifest["spec"]
    assert set(spec) == {"serveConfigV2", "rayClusterConfig"}
    cluster = spec["rayClusterConfig"]
    assert set(cluster) == {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    (group,) = cluster["workerGroupSpecs"]
    fields = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert set(group) == fields and set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    for template in (group["template"], cluster["headGroupSpec"]["template"]):
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["resources"]["limits"].keys() == container["resources"]["requests"].keys()
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    (model,) = read_models(application["args"])
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert model.gpus_per_replica <= int(limits["nvidia.com/gpu"]) and model.cpus_per_replica <= int(limits["cpu"])
    assert group["minReplicas"] <= model.min_replicas and model.max_replicas <= group["maxReplicas"]
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > model.drain_timeout
