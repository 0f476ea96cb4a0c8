"""Cluster files are validated by Ray's own schema, by our settings, and against each other."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.clusters.files import FOLDER, LAUNCHED, read
from tests.clusters.variables import named_in, unread
from toque.clusters.profile import Profile, missing_settings, settings_of
from toque.functions.runtime.run.cluster import AWAY_FROM_SERVING
from toque.ray_apps.deployment.node import NodeStart, node_resources
from toque.ray_apps.local.settings import Settings

CLOUDS = ["aws-gpu.yaml", "gcp.yaml"]
CLUSTERS = [*CLOUDS, "on-premises.yaml"]
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def node_types(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read(name)["available_node_types"]
    return found


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


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_with_spot_machines_listens_for_the_clouds_notice(name: str):
    config = read(name)
    markets = [
        kind.get("labels", {}).get("ray.io/market-type")
        for kind in config.get("available_node_types", {}).values()
    ]
    if "spot" not in markets:
        return  # machines of one's own are not taken away
    last = config["worker_start_ray_commands"][-1]  # once the node is up, beside it
    assert f"toque node drain --when-told {config['provider']['type']}" in last
    assert last.endswith("&")


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_starts_by_our_command_with_the_profile_that_was_brought_to_it(name: str):
    config = read(name)
    for commands in STARTS:
        assert sum("toque node start" in command for command in config[commands]) == 1, commands
        assert "ray start" not in " ".join(config[commands])
    assert "--head -- --autoscaling-config=~/ray_bootstrap_config.yaml" in config[STARTS[0]][-1]
    home = next(place for place, what in config["file_mounts"].items() if what == "toque.yaml")
    assert f"TOQUE_PROFILE=~/{Path(home).name}" in " ".join(config["setup_commands"])
    assert {"secrets", "~/.ray/auth_token", "."} < set(config["file_mounts"].values())


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_variable_that_a_file_names_is_read_by_somebody(name: str):
    assert unread(named_in((FOLDER / name).read_text())) == set()


@pytest.mark.parametrize("name", CLOUDS)
def test_images_have_the_installed_version_of_ray(name: str):
    images = set(re.findall(r"rayproject/ray:(\S+?)-py311", (FOLDER / name).read_text()))
    assert images == {importlib.metadata.version("ray")}


@pytest.mark.parametrize("name", CLOUDS)
def test_nodes_have_the_resources_and_the_label_of_their_type(name: str):
    (key,) = AWAY_FROM_SERVING
    for kind, node in node_types(name).items():
        start = NodeStart(None if kind == "head" else "10.0.0.1", kind)
        custom = {each: node["resources"].get(each) for each in ("serve", "door")}
        assert {each: many for each, many in custom.items() if many} == node_resources(start), kind
        assert node["labels"][key] == kind
    assert f"!{next(kind for kind in node_types(name) if kind == 'serve')}" == AWAY_FROM_SERVING[key]
    assert node_types(name)["head"]["resources"]["CPU"] == 0


@pytest.mark.parametrize("name", CLOUDS)
def test_spot_nodes_neither_serve_nor_lead(name: str):
    spot = {kind for kind, node in node_types(name).items() if "SPOT" in str(node["node_config"]).upper()}
    assert spot == {"gpu"}
    assert {kind for kind, node in node_types(name).items() if "ray.io/market-type" in node["labels"]} == spot


@pytest.mark.parametrize("name", CLOUDS)
def test_two_nodes_serve_and_gpu_nodes_scale_from_zero(name: str):
    types = node_types(name)
    assert types["serve"]["min_workers"] >= 2
    assert (types["gpu"]["min_workers"], types["gpu"]["resources"]["GPU"]) == (0, 1)
    assert sum(kind.get("max_workers", 0) for kind in types.values()) == read(name)["max_workers"]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_types_own_commands_which_replace_all_others_do_what_those_do(name: str):
    config = read(name)
    own = node_types(name)["gpu"]["worker_setup_commands"]
    assert own[: len(config["setup_commands"])] == config["setup_commands"]
    installs = [
        commands[-1] for commands in (own, config["head_setup_commands"], config["worker_setup_commands"])
    ]
    assert all("python -m tests.project.install --image" in each for each in installs)
    assert ["PIP_EXTRA_INDEX_URL" in each for each in installs] == [
        False,
        True,
        True,
    ]  # CUDA's libraries for GPUs


def test_on_premises_the_machines_that_serve_are_some_of_the_workers():
    config = read("on-premises.yaml")
    workers = config["provider"]["worker_ips"]
    assert config["max_workers"] == config["min_workers"] == len(workers)
    found = re.search(r"for host in ([\d. ]+);", config["worker_start_ray_commands"][-1])
    assert found
    serving = found[1].split()
    assert len(serving) >= 2
    assert set(serving) < set(workers)


def test_a_variable_that_nobody_reads_is_found():
    assert unread({"TOQUE_STORE", "RAY_AUTH_TOKEN", "RAY_gcs_rpc_server_reconnect_timeout_s"}) == set()
    misspelt = {"TOQUE_STOER", "RAY_AUTH_TOKN", "RAY_gcs_rpc_server_reconect_timeout_s"}
    assert unread(misspelt) == misspelt


def test_the_example_of_a_profile_is_valid_and_names_every_setting():
    file = FOLDER / "profile.example.yaml"
    assert missing_settings({"TOQUE_PROFILE": str(file)}) == []
    asked = re.sub(r"^( *)# (?=[a-z_]+:)", r"\1", file.read_text(), flags=re.MULTILINE)
    shown = yaml.safe_load(asked)
    assert Profile.model_validate(shown).cluster == "toque"
    for setting in settings_of({}):
        section, _, name = setting.name.rpartition(".")
        assert name in (shown.get(section, {}) if section else shown), f"add {setting.name} to {file.name}"
