"""Cluster files are validated by Ray's own schema, by our settings, and against each other."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import clusters
from ray_apps.local.settings import Settings

FOLDER = Path(clusters.__file__).parent
LAUNCHED = ["local.yaml", "aws-gpu.yaml"]
SERVE_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_accepts_the_file(name: str):
    validate_config(prepare_config(read(name)))


def test_ray_up_refuses_a_misspelt_key():
    broken = read("local.yaml") | {"setup_comands": []}
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config(broken))


def test_the_local_file_holds_valid_settings():
    chosen = read("local.yaml")["metadata"]["toque"]
    settings = Settings(**chosen)
    assert settings.host == "127.0.0.1"
    assert settings.ports.model_dump() | chosen["ports"] == settings.ports.model_dump()


@pytest.mark.parametrize("name", [*LAUNCHED, "kuberay.yaml"])
def test_every_file_has_serves_throughput_and_token_settings(name: str):
    text = (FOLDER / name).read_text()
    for variable, value in SERVE_SETTINGS.items():
        assert re.search(rf'{variable}(=|, value: "?){value}\b', text), (name, variable)


@pytest.mark.parametrize("name", [*LAUNCHED, "kuberay.yaml"])
def test_every_file_starts_haproxy_with_its_pages_and_socket_closed(name: str):
    text = (FOLDER / name).read_text()
    started = len(re.findall(r"RAY_SERVE_ENABLE_HA_PROXY", text))
    assert len(re.findall(r"RAY_SERVE_HAPROXY_BINARY_PATH.*toque/clusters/haproxy\.sh", text)) == started


def test_no_file_of_a_machine_with_several_users_has_a_name_that_others_can_make_first():
    for command in ("head_start_ray_commands", "worker_start_ray_commands"):
        text = " ".join(read("local.yaml")[command])
        for file in (
            "CONFIG_FILE_LOC",
            "SOCKET_PATH",
            "SERVER_STATE_BASE",
            "SERVER_STATE_FILE",
            "METRICS_SOCKET_PATH",
        ):
            assert f"RAY_SERVE_HAPROXY_{file}=$HOME/.ha" in text
        assert "umask 077; mkdir -p $HOME/.ha;" in text
    assert "--temp-dir=$HOME/.ha/r" in " ".join(read("local.yaml")["head_start_ray_commands"])


@pytest.mark.parametrize("name", ["aws-gpu.yaml", "kuberay.yaml"])
def test_images_have_the_installed_version_of_ray(name: str):
    images = set(re.findall(r"rayproject/ray:(\S+?)-py311", (FOLDER / name).read_text()))
    assert images == {importlib.metadata.version("ray")}


def test_gpu_nodes_scale_from_zero():
    gpu = read("aws-gpu.yaml")["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["resources"]["GPU"]) == (0, 1)
    group = next(g for g in read("kuberay.yaml")["spec"]["workerGroupSpecs"] if g["groupName"] == "gpu")
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    container = group["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (
        container["env"]
        == read("kuberay.yaml")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    )


def test_node_types_add_up_to_the_clusters_limit():
    config = read("aws-gpu.yaml")
    assert (
        sum(kind.get("max_workers", 0) for kind in config["available_node_types"].values())
        == config["max_workers"]
    )
