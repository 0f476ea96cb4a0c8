"""Alert rules by promtool: each alert fires for its fault, no other does, and it clears; a healthy day raises none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters.monitoring.timelines import AFTER, FAULTS, HEALTHY, STEP_S, Fault, Phases
from toque.clusters.monitoring.__main__ import prometheus_rule
from toque.ray_apps.exporter import all_series

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "clusters" / "monitoring"
RULES = sorted((MONITORING / "prometheus" / "rules").glob("*.yaml"))
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus"
)


def alerts() -> list[dict[str, Any]]:
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


NAMES = sorted({rule["alert"] for rule in alerts()} - {"Watchdog"})


def page_of(alert: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower()


def marked(fault: Fault) -> Any:
    slow = fault.phases[2] > AFTER
    return pytest.param(fault, id=fault.alert, marks=pytest.mark.slow if slow else ())


def promtool(tmp_path: Path, tests: list[dict[str, Any]], *, every_s: int = STEP_S) -> None:
    file = tmp_path / "tests.yaml"
    rules = [str(each) for each in RULES]
    document = {"rule_files": rules, "evaluation_interval": f"{every_s}s", "tests": tests}
    file.write_text(json.dumps(document))  # which is YAML
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def timeline(name: str, series: dict[str, Any], phases: Phases, checks: list[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "interval": f"{STEP_S}s",
        "input_series": [{"series": each, "values": values(phases)} for each, values in series.items()],
        "promql_expr_test": checks,
    }


def firing(at_s: int, *wanted: tuple[str, str]) -> dict[str, Any]:
    """Demand that so many alerts fire at a time, by name and severity, and no other but the watchdog."""
    return {
        "expr": 'group by (alertname, severity) (ALERTS{alertstate="firing", alertname!="Watchdog"})',
        "eval_time": f"{at_s}s",
        "exp_samples": [
            {"labels": f'{{alertname="{name}", severity="{severity}"}}', "value": 1}
            for name, severity in wanted
        ],
    }


@needs_promtool
@pytest.mark.slow
def test_a_healthy_platform_raises_no_alert_in_a_day(tmp_path: Path) -> None:
    day: Phases = (250, 250, 250)
    checks = [firing(at * 3_600) for at in range(1, 25)]
    promtool(tmp_path, [timeline("healthy", dict(HEALTHY), day, checks)], every_s=600)


@needs_promtool
@pytest.mark.parametrize("fault", [marked(each) for each in FAULTS])
def test_an_alert_fires_for_its_fault_alone_and_clears(tmp_path: Path, fault: Fault) -> None:
    before, during, after = fault.phases
    begins, ends, last = before * STEP_S, (before + during) * STEP_S, (before + during + after) * STEP_S
    wanted = [(fault.alert, severity) for severity in sorted(fault.severities)]
    checks = [
        firing(begins - STEP_S),
        firing(begins + fault.within_s, *wanted),
        firing(ends - STEP_S, *wanted),
    ]
    if fault.within_s >= ends - begins:
        pytest.fail("the fault ends before the alert is due")
    series = dict(HEALTHY) | dict(fault.series)
    promtool(tmp_path, [timeline(fault.alert, series, fault.phases, [*checks, firing(last - STEP_S)])])


SUMMED = (
    "GatewayErrors",
    "GatewaySlow",
    "StoreFails",
    "StoreSlow",
    "NoLeader",
    "StreamStands",
    "DrainLags",
    "BackupStale",
    "HeadAway",
    "ReplicasPending",
    "TokenExpired",
)
"""Alerts over sums and maxima of many series, of which another platform's could hide a fault."""


@needs_promtool
@pytest.mark.parametrize(
    "fault",
    {fault.alert: fault for fault in FAULTS if fault.alert in SUMMED}.values(),
    ids=lambda fault: fault.alert,
)
def test_a_fault_of_one_platform_is_seen_beside_a_healthy_one(tmp_path: Path, fault: Fault) -> None:
    """Two platforms in one Prometheus, whose targets have a label `cluster`: the sums of one must not hide the other's."""
    before, during, _ = fault.phases
    alike = [
        f'{name[:-1]},cluster="{cluster}"}}' if name.endswith("}") else f'{name}{{cluster="{cluster}"}}'
        for cluster in ("prod", "staging")
        for name in (dict(HEALTHY) | dict(fault.series))
    ]
    series = dict(
        zip(alike, [*(dict(HEALTHY) | dict(fault.series)).values(), *dict(HEALTHY).values()], strict=True)
    )
    check = {
        "expr": 'group by (alertname, cluster) (ALERTS{alertstate="firing", alertname!="Watchdog"})',
        "eval_time": f"{(before + during) * STEP_S - STEP_S}s",
        "exp_samples": [{"labels": f'{{alertname="{fault.alert}", cluster="prod"}}', "value": 1}],
    }
    promtool(tmp_path, [timeline(fault.alert, series, fault.phases, [check])])


@needs_promtool
def test_a_writer_that_never_comes_back_is_told_of_for_a_day_and_the_next_one_again(tmp_path: Path) -> None:
    (name,) = (each for each in HEALTHY if each.startswith("toque_log_writers_missing"))
    hour_steps, lost = 3_600 // STEP_S, [("LogWritersLost", "ticket")]
    first, second = 2 * hour_steps, 30 * hour_steps
    values = f"0x{first - 1} 1x{second - first - 1} 2x{30 * hour_steps}"
    checks = [
        firing(first * STEP_S - STEP_S),
        *(firing(first * STEP_S + after_s, *lost) for after_s in (300, 23 * 3_600)),
        firing(first * STEP_S + 26 * 3_600),
        *(firing(second * STEP_S + after_s, *lost) for after_s in (300, 23 * 3_600)),
        firing(second * STEP_S + 26 * 3_600),
    ]
    given = timeline("lost for good", {name: lambda _: values}, (0, 0, 0), checks)
    given["input_series"] += [
        {"series": series, "values": f"1x{70 * hour_steps}"}
        for series in ('toque_ticker_leader{node="a"}', 'up{job="toque"}')
    ]
    promtool(tmp_path, [given], every_s=300)  # as soon as the first check after a loss


def test_each_alert_has_a_fault_that_raises_it() -> None:
    assert {fault.alert for fault in FAULTS} == set(NAMES)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_grave_it_is_and_leads_to_its_page(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket", "none"}
    assert rule["labels"]["layer"] in {"cause", "symptom", "none"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page = f"docs/runbooks/{page_of(rule['alert'])}.md"
    assert rule["annotations"]["runbook_url"] == page
    assert (ROOT / page).is_file()


def test_the_rules_for_the_operator_are_those_of_the_files() -> None:
    groups = prometheus_rule()["spec"]["groups"]
    assert [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule] == [
        rule["alert"] for rule in alerts()
    ]


EXTERNAL = {
    "up",
    "probe_ssl_earliest_cert_expiry",
    "haproxy_server_http_responses_total",
    "DCGM_FI_DEV_XID_ERRORS",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
}
"""Series of Prometheus, of the blackbox exporter, of HAProxy and of dcgm-exporter."""


def test_every_series_of_a_rule_is_declared_by_the_code() -> None:
    known = {name for series in all_series() for name in series.sample_names} | EXTERNAL
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {
        name
        for rule in rules
        for name in re.findall(
            r"\b(?:workspace(?:_model|_source)?:)?toque_[a-z0-9_:]+|\bprobe_\w+", rule["expr"]
        )
    }
    assert used - known - recorded == set()
    assert {re.sub(r"[{].*", "", name) for name in HEALTHY} <= known
