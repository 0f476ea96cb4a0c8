"""Configurations of Prometheus, Alertmanager and its operator are valid, and agree with the rules on names."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters.manifests import groups, labels_of, of_kind, problems, render

MONITORING = Path(__file__).resolve().parents[3] / "clusters" / "monitoring"
PROMETHEUS = ("one-machine.yaml", "cluster.yaml")


def run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}: apt-get install prometheus prometheus-alertmanager")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("file", PROMETHEUS)
def test_prometheus_takes_the_configuration(file: str) -> None:
    run("promtool", "check", "config", "--syntax-only", str(MONITORING / "prometheus" / file))


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("severity=page", "layer=cause"), "on-call"),
        (("severity=ticket", "layer=symptom"), "tickets"),
        (("severity=none", "layer=none"), "heartbeat"),
    ],
)
def test_alertmanager_tells_the_right_people(labels: tuple[str, ...], receiver: str) -> None:
    shown = run(
        "amtool", "config", "routes", "test", f"--config.file={MONITORING / 'alertmanager.yaml'}", *labels
    )
    assert shown.strip() == receiver


Labels = dict[str, str]


def holds_back(cause: Labels, symptom: Labels) -> bool:
    """Whether Alertmanager holds a symptom back while a cause stands; a label that both lack counts as equal."""

    def matches(labels: Labels, matchers: list[str]) -> bool:
        pairs = [re.split(r" (=~?) ", matcher) for matcher in matchers]
        return all(
            re.fullmatch(value.strip('"') if operator == "=~" else re.escape(value), labels.get(name, ""))
            for name, operator, value in pairs
        )

    rules = yaml.safe_load((MONITORING / "alertmanager.yaml").read_text())["inhibit_rules"]
    return any(
        matches(cause, rule["source_matchers"])
        and matches(symptom, rule["target_matchers"])
        and all(cause.get(name, "") == symptom.get(name, "") for name in rule["equal"])
        for rule in rules
    )


def alert(name: str, /, **labels: str) -> Labels:
    files = (MONITORING / "prometheus" / "rules").glob("*.yaml")
    rules = [
        rule
        for file in files
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    return next(
        {**rule["labels"], "alertname": name, **labels} for rule in rules if rule.get("alert") == name
    )


CAUSES = [
    (alert("RedisAway", cluster="prod", node="a"), "held back"),
    (alert("RedisAway", cluster="staging", node="a"), "notified"),
    (alert("StreamStands", cluster="prod", workspace="payments", source="clicks"), "held back"),
    (alert("StreamStands", cluster="prod", workspace="pay", source="clicks"), "notified"),
    (alert("OutOfMemory", cluster="prod", node="gpu-7"), "notified"),
    (alert("DiskFills", cluster="prod", node="gpu-7"), "notified"),
    (alert("HaproxyDown", cluster="prod", instance="10.0.0.9:9101"), "notified"),
    (alert("TokenExpired", cluster="prod", name="old-ci"), "notified"),
]


@pytest.mark.parametrize(("cause", "fate"), CAUSES, ids=[cause["alertname"] for cause, _ in CAUSES])
def test_a_cause_holds_back_only_symptoms_that_it_can_have_caused(cause: Labels, fate: str) -> None:
    symptom = alert("ModelErrorBudgetBurns", cluster="prod", workspace="payments", model="fraud")
    assert holds_back(cause, symptom) is (fate == "held back")


def jobs_of_rules() -> set[str]:
    text = "".join(file.read_text() for file in (MONITORING / "prometheus" / "rules").glob("*.yaml"))
    return set(re.findall(r'job="([^"]+)"', text))


@pytest.mark.parametrize("file", PROMETHEUS)
def test_the_jobs_that_rules_name_are_scraped(file: str) -> None:
    configuration = yaml.safe_load((MONITORING / "prometheus" / file).read_text())
    assert jobs_of_rules() <= {each["job_name"] for each in configuration["scrape_configs"]}


def test_the_operators_monitors_name_the_same_jobs_and_ports_that_policies_let_in(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"kind": "Kustomization", "resources": ["base"], "components": ["monitoring"]})
    )
    kubernetes = MONITORING.parent / "kubernetes"
    shutil.copytree(kubernetes / "base", tmp_path / "base")
    shutil.copytree(kubernetes / "components" / "monitoring", tmp_path / "monitoring")
    found = render(str(tmp_path))
    monitors = [each for each in found if each["kind"] == "PodMonitor"]
    assert {each["metadata"]["name"] for each in monitors} == jobs_of_rules()
    for each in monitors:
        (endpoint,) = each["spec"]["podMetricsEndpoints"]
        assert endpoint["relabelings"] == [
            {"targetLabel": "job", "replacement": each["metadata"]["name"]},
            {"targetLabel": "cluster", "replacement": "toque"},
        ]
        assert "release" in each["metadata"]["labels"]  # what kube-prometheus-stack selects by
        selected = ports_of_pods(each["spec"]["selector"]["matchLabels"])
        assert selected
        for (
            pod,
            ports,
        ) in selected.items():  # the operator makes no target of a port that no container declares
            assert ports.get(endpoint["port"]) in open_to_monitoring(found), pod
    for name in ("series", "metrics"):
        assert not problems(of_kind(str(tmp_path), "NetworkPolicy")[name])


def ports_of_pods(selector: dict[str, str]) -> dict[str, dict[str, int]]:
    """Map each kind of the base's Ray pods that a selector matches to the numbers of its ports by name."""
    return {
        name: {
            port["name"]: port["containerPort"]
            for port in group["template"]["spec"]["containers"][0]["ports"]
        }
        for name, group in groups("base").items()
        if selector.items() <= labels_of(name, group).items()
    }


def open_to_monitoring(manifests: tuple[dict[str, Any], ...]) -> set[int]:
    rules = [
        rule
        for each in manifests
        if each["kind"] == "NetworkPolicy"
        for rule in each["spec"].get("ingress", [])
    ]
    return {
        port["port"]
        for rule in rules
        if "monitoring" in yaml.safe_dump(rule["from"])
        for port in rule["ports"]
    }
