"""Manifests for Kubernetes: valid by the API's schemas, in agreement with each other and with the code."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ray._private.label_utils import parse_node_labels_string

from tests.clusters.files import FOLDER
from tests.clusters.manifests import (
    FOLDERS,
    Manifest,
    groups,
    labels_of,
    of_kind,
    pod_specs,
    problems,
    ray_cluster,
    render,
)
from tests.clusters.variables import named_in, unread
from toque.clusters.profile import read_profile
from toque.functions.runtime.run.cluster import AWAY_FROM_SERVING
from toque.ray_apps.deployment.node import NodeStart, node_resources

SPOT = {"SPOT", "spot", "true"}
every_folder = pytest.mark.parametrize("folder", FOLDERS)


@every_folder
def test_every_manifest_is_valid_and_in_the_namespace(folder: str):
    found = {}
    for each in render(folder):
        name = (each["kind"], each["metadata"]["name"])
        assert problems(each) == [], name
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "toque", name
        assert name not in found
        found[name] = each


def test_a_misspelt_or_mistyped_field_is_found():
    for kind, place, wrong in (
        (
            "RayCluster",
            ("spec", "headGroupSpec", "template", "spec", "containers", 0),
            {"imagePullpolicy": "Always"},
        ),
        ("RayCluster", ("spec", "workerGroupSpecs", 0), {"minReplicas": "two"}),
        ("RayCluster", ("spec", "autoscalerOptions"), {"version": "v3"}),
        ("NetworkPolicy", ("spec",), {"policyType": ["Ingress"]}),
        ("PodDisruptionBudget", ("spec", "selector"), {"matchLabel": {}}),
        ("Job", ("spec", "template", "spec", "containers", 0, "resources"), {"limit": {}}),
    ):
        manifest = copy.deepcopy(next(iter(of_kind("base", kind).values())))
        assert problems(manifest) == []
        broken: Any = manifest
        for step in place:
            broken = broken[step]
        broken |= wrong
        assert problems(manifest) != [], (kind, wrong)


@every_folder
def test_the_head_and_the_platform_find_the_same_redis_and_secrets(folder: str, tmp_path: Path):
    file = tmp_path / "toque.yaml"
    file.write_text(of_kind(folder, "ConfigMap")["toque-profile"]["data"]["toque.yaml"])
    profile = read_profile(file)
    told = ray_cluster(folder)["gcsFaultToleranceOptions"]
    ours, rays = (
        urlsplit(url if "//" in url else f"redis://{url}")
        for url in (profile.redis.url, told["redisAddress"])
    )
    assert (ours.scheme, ours.netloc) == (rays.scheme, rays.netloc)
    assert ours.password is None  # secrets are files
    secret = told["redisPassword"]["valueFrom"]["secretKeyRef"]
    for name, group in groups(folder).items():
        container = group["template"]["spec"]["containers"][0]
        mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in group["template"]["spec"]["volumes"]}
        assert volumes["secrets"]["secret"] == {"secretName": secret["name"], "defaultMode": 0o440}
        assert profile.redis.password_file == f"{mounted['secrets']}/{secret['key']}"
        assert environment_of(container)["TOQUE_PROFILE"] == f"{mounted['profile']}/toque.yaml", name
    if folder != "overlays/dev":
        assert of_kind(folder, "Secret") == {}


@every_folder
def test_the_profile_serves_registered_models_and_keeps_the_log_on_a_bounded_volume(
    folder: str, tmp_path: Path
):
    file = tmp_path / "toque.yaml"
    file.write_text(of_kind(folder, "ConfigMap")["toque-profile"]["data"]["toque.yaml"])
    profile = read_profile(file)
    assert (
        profile.placement.pool >= 1
    )  # docs/kubernetes.md leads to a prediction by a model that was registered
    spec = groups(folder)["serve"]["template"]["spec"]
    (mount,) = (
        each
        for each in spec["containers"][0]["volumeMounts"]
        if Path(profile.log.folder).is_relative_to(each["mountPath"])
    )
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes[mount["name"]].keys() & {"emptyDir", "persistentVolumeClaim"}
    assert all(each["emptyDir"].get("sizeLimit") for each in volumes.values() if "emptyDir" in each)


@every_folder
def test_pods_that_leave_are_drained_and_unready_ones_hold_nothing_up(folder: str):
    for name, group in groups(folder).items():
        command = group["template"]["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {})
        assert name == "head" or command["exec"]["command"][:3] == ["toque", "node", "drain"], name
    for budget in of_kind(folder, "PodDisruptionBudget").values():
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def environment_of(container: Manifest) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


@every_folder
def test_every_variable_of_a_manifest_is_read_by_somebody(folder: str):
    for name, spec in pod_specs(folder).items():
        for container in spec["containers"]:
            made_by_kuberay = {"RAY_GEN_RAY_START_CMD"}  # after KUBE
            assert unread(named_in(json.dumps(container)) - made_by_kuberay) == set(), name


def test_versions_and_images_agree():
    spec = ray_cluster("base")
    assert spec["rayVersion"] == importlib.metadata.version("ray")
    images = {name: each["containers"][0]["image"] for name, each in pod_specs("base").items()}
    assert images["gpu"] == f"{images['head']}-gpu"
    assert {images[name] for name in images if name != "gpu"} == {images["head"]}
    assert images["head"].rpartition(":")[2] == importlib.metadata.version("toque")


@every_folder
def test_groups_have_the_resources_and_the_label_of_their_type(folder: str):
    (key,) = AWAY_FROM_SERVING
    assert f"!{groups(folder)['serve']['groupName']}" == AWAY_FROM_SERVING[key]
    for name, group in groups(folder).items():
        given = {each: float(many) for each, many in group.get("resources", {}).items() if each != "CPU"}
        assert given == node_resources(NodeStart(None if name == "head" else "toque-head-svc", name))
        if name != "head":  # Ray's own label of a node, and for the autoscaler the group's
            assert parse_node_labels_string(f"{key}={name}") == group["labels"]
    assert groups(folder)["head"]["resources"]["CPU"] == "0"


@every_folder
@pytest.mark.parametrize("name", ["head", "serve", "cpu"])
def test_the_command_hands_kuberays_whole_to_our_own(folder: str, name: str, tmp_path: Path):
    spec = groups(folder)[name]["template"]["spec"]["containers"][0]
    tini = tmp_path / "tini"  # stands for the first process, and says what it is to run
    tini.write_text('#!/bin/sh\nfor each; do printf "%s\\n" "$each"; done\n')
    tini.chmod(0o700)
    started = subprocess.run(
        [*spec["command"], *spec["args"]],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "REDIS_PASSWORD": "s3cret",
            "KUBERAY_GEN_RAY_START_CMD": kuberays_command(name, groups(folder)[name]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    words = started.stdout.splitlines()
    assert words[:6] == ["--", "toque", "node", "start", "--type", name]
    node = NodeStart.parse(head=False, address=None, kind=words[5], block=False, more=words[7:])
    assert (node.is_head, node.type, node.block) == (name == "head", name, True)
    if name == "head":
        assert "--redis-password=s3cret" in node.more
    if name == "serve":
        assert '--resources={"door":1000,"serve":1000}' in node.more
        assert "--labels=ray.io/node-group=serve" in node.more


def kuberays_command(name: str, group: Manifest) -> str:
    """Write the command as KubeRay 1.7 does (controllers/ray/common/pod.go)."""
    options = dict(group["rayStartParams"]) | {"block": "true", "metrics-export-port": "8080"}
    custom = {key: int(many) for key, many in sorted(group.get("resources", {}).items()) if key != "CPU"}
    if custom:
        options["resources"] = f"'{json.dumps(custom, separators=(',', ':'))}'"
    if "labels" in group:
        options["labels"] = ",".join(f"{key}={text}" for key, text in group["labels"].items())
    if name == "head":
        options |= {"num-cpus": "0", "no-monitor": "true", "redis-password": "$REDIS_PASSWORD"}
    else:
        options |= {"address": "toque-head-svc.toque.svc.cluster.local:6379", "num-cpus": "8"}
    flags = [f" --{key} " if text == "true" else f" --{key}={text} " for key, text in sorted(options.items())]
    return f"ray start {'--head' if name == 'head' else ''} {''.join(flags)}"


@every_folder
def test_every_container_is_restricted(folder: str):
    assert (
        of_kind(folder, "Namespace")["toque"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        == "restricted"
    )
    containers = {"autoscaler": ray_cluster(folder)["autoscalerOptions"]}
    for name, spec in pod_specs(folder).items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["securityContext"]["runAsUser"] > 0
        containers |= {f"{name}/{each['name']}": each for each in spec["containers"]}
    for name, container in containers.items():
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
        assert "memory" in container["resources"]["limits"], name


@every_folder
def test_only_the_head_has_an_account_that_may_ask_kubernetes(folder: str):
    accounts = of_kind(folder, "ServiceAccount")
    for name, spec in pod_specs(folder).items():
        account = spec.get("serviceAccountName")
        assert account is None or account in accounts
        assert spec.get("automountServiceAccountToken", True) is (name == "head"), name
    (role,) = of_kind(folder, "Role").values()
    assert [(each["resources"], each["verbs"], each.get("resourceNames")) for each in role["rules"]] == [
        (["secrets"], ["get", "update"], ["toque-admin"]),  # `toque deploy --new-token` replaces it
        (["secrets"], ["create"], None),
    ]
    (binding,) = of_kind(folder, "RoleBinding").values()
    assert [each["name"] for each in binding["subjects"]] == ["toque-head"]
    assert "toque-admin" in pod_specs(folder)["toque-deploy"]["containers"][0]["command"]


@every_folder
def test_every_ray_pod_is_probed_and_a_serving_one_is_ready_when_its_door_answers(folder: str):
    for name, group in groups(folder).items():
        container = group["template"]["spec"]["containers"][0]
        ready = container["readinessProbe"]["httpGet"]
        assert ready == (
            {"path": "/-/healthz", "port": "http"}
            if name == "serve"
            else {"path": "/api/healthz", "port": 52365}
        )
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}, (name, probe)


@every_folder
def test_clients_reach_the_doors_of_serving_pods_alone(folder: str, tmp_path: Path):
    file = tmp_path / "toque.yaml"
    file.write_text(of_kind(folder, "ConfigMap")["toque-profile"]["data"]["toque.yaml"])
    doors = read_profile(file).ports
    service = of_kind(folder, "Service")["toque"]["spec"]
    serving = {
        name
        for name, group in groups(folder).items()
        if service["selector"].items() <= labels_of(name, group).items()
    }
    assert serving == {"serve"}
    ports = {
        each["name"]: each["containerPort"]
        for each in groups(folder)["serve"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert {ports[each["targetPort"]] for each in service["ports"]} == {doors.http, doors.grpc}
    for name, group in groups(folder).items():
        expected = {doors.http, doors.grpc} if name == "serve" else set()
        assert reachable_from_namespaces(folder, labels_of(name, group), {"toque/client": "true"}) == expected
        assert reachable_from_namespaces(folder, labels_of(name, group), {}) == set()


def reachable_from_namespaces(folder: str, pod: dict[str, str], namespace: dict[str, str]) -> set[int]:
    """List the ports of a pod that the network policies open to pods of another namespace; 0 stands for all."""
    policies = [each["spec"] for each in of_kind(folder, "NetworkPolicy").values()]
    chosen = [each for each in policies if each["podSelector"].get("matchLabels", {}).items() <= pod.items()]
    assert any("Ingress" in each["policyTypes"] for each in chosen)  # or all would be open
    found = set()
    for rule in (rule for each in chosen for rule in each.get("ingress", [])):
        peers = [
            each["namespaceSelector"].get("matchLabels", {})
            for each in rule["from"]
            if "namespaceSelector" in each
        ]
        if any(wanted.items() <= namespace.items() for wanted in peers):
            found |= {each["port"] for each in rule.get("ports", [{"port": 0}])}
    return found


@every_folder
def test_the_job_endpoint_is_open_to_the_deploy_job_alone(folder: str):
    policies = of_kind(folder, "NetworkPolicy")
    job = of_kind(folder, "Job")["toque-deploy"]["spec"]["template"]
    (rule,) = policies["deploy-to-head"]["spec"]["ingress"]
    assert rule["from"][0]["podSelector"]["matchLabels"].items() <= job["metadata"]["labels"].items()
    (head,) = (port["port"] for port in rule["ports"])
    assert f"http://toque-head-svc:{head}" in job["spec"]["containers"][0]["command"]
    opened = {
        name for name, each in policies.items() for rule in each["spec"].get("ingress", [])
        if any(port["port"] == head for port in rule.get("ports", []))
    }  # fmt: skip
    assert opened == {"deploy-to-head"}


@every_folder
def test_no_pod_reaches_the_machines_own_metadata(folder: str):
    for name, policy in of_kind(folder, "NetworkPolicy").items():
        for rule in policy["spec"].get("egress", []):
            for peer in rule["to"]:
                assert "ipBlock" not in peer or "169.254.169.254/32" in peer["ipBlock"]["except"], name


@every_folder
def test_serving_pods_are_spread_kept_off_spot_machines_and_never_all_drained(folder: str):
    group = groups(folder)["serve"]
    spec = group["template"]["spec"]
    labels = labels_of("serve", group)
    spread = {each["topologyKey"]: each for each in spec["topologySpreadConstraints"]}
    assert spread["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
    assert "topology.kubernetes.io/zone" in spread
    assert all(each["labelSelector"]["matchLabels"].items() <= labels.items() for each in spread.values())
    for name in ("head", "serve"):
        chosen = groups(folder)[name]["template"]["spec"]["affinity"]["nodeAffinity"]
        (term,) = chosen["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert all(
            each["operator"] == "NotIn" and set(each["values"]) <= SPOT for each in term["matchExpressions"]
        )
    (budget,) = of_kind(folder, "PodDisruptionBudget").values()
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert budget["spec"]["minAvailable"] < group["minReplicas"] or folder == "overlays/dev"


def test_what_comes_and_goes_starts_at_none():
    for name in ("cpu", "gpu"):
        assert (groups("base")[name]["minReplicas"], groups("base")[name]["replicas"]) == (0, 0)
    gpu = groups("base")["gpu"]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_every_overlay_is_tested():
    overlays = {f"overlays/{each.name}" for each in (FOLDER / "kubernetes" / "overlays").iterdir()}
    assert overlays | {"base"} == set(FOLDERS)
