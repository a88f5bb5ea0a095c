"""The clusters of docs/how-to/scale.md: what Ray and Kubernetes would read, and the commands in it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml

from factsmith.flows.configuration.composition import compose
from tests.conftest import ROOT
from tests.docs.pages import blocks

CLUSTER, JOB = (yaml.safe_load(one.text) for one in blocks(ROOT / "docs/how-to/scale.md") if one.language == "yaml")


@pytest.mark.skipif((ray := find_spec("ray")) is None, reason="needs factsmith[ray]")
def test_ray_up_takes_the_cluster():
    assert ray is not None
    assert ray.origin is not None
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(CLUSTER, schema)
    assert CLUSTER["head_node_type"] in CLUSTER["available_node_types"]


def test_the_job_of_kubernetes_runs_a_command_of_ours_on_shared_folders():
    program, command, *arguments = JOB["spec"]["entrypoint"].split()
    assert (program, command) == ("factsmith", "precompute")
    assert compose([*arguments, "dataset=embedded"]).runtime.ray.address == "auto"
    cluster = JOB["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        homes = {one["name"]: one["value"] for one in container["env"]}
        (mount,) = container["volumeMounts"]
        assert homes["FACTSMITH_HOME"].startswith(mount["mountPath"])
        assert mount["name"] == pod["volumes"][0]["name"]
