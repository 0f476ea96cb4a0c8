"""Decisions that one kind of processor made, made again on another one that rounds otherwise."""

from __future__ import annotations

import json

import pytest

from tests.conditions import processors
from tests.conditions.processors import Processor
from toque.functions.rollout.explain import _alike
from toque.functions.rollout.judge.decide import Decision, Finding

AGAIN = """
import json, sys, tarfile, tempfile
from toque.functions.rollout.controller import rollout_journal
from toque.functions.rollout.explain import explain
from toque.registry import open_store, utc_now
with tempfile.TemporaryDirectory() as folder:
    with tarfile.open("tests/compat/store_0_1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    fold = rollout_journal("late", store=open_store(f"file://{folder}/store"), clock=utc_now, actor="test")
    entries = list(fold.journal.entries())
    decided = [entry.number for entry in entries if entry.body["event"] == "decided"]
    print(json.dumps([(told.same, told.text) for told in (explain(entries, number) for number in decided)]))
"""
SUMS = """
import numpy as np
from toque.functions.rollout.evidence.metrics import MetricArm, MetricCohort, MetricUnits
from toque.functions.rollout.evidence.slots import SlotSums
from toque.functions.rollout.evidence.sums import MetricSums, PairedLoss
rng = np.random.default_rng(1)
loss, slots, units, metric = PairedLoss(), SlotSums(), MetricUnits(), MetricSums()
for _ in range(5):
    losses, ids = rng.random((2, 1_000)), rng.integers(300, size=1_000)
    loss += PairedLoss.of_cohort(*losses, ids, pairs=1_000, requests=1_000)
    slots += SlotSums.of(ids, losses[0] - losses[1], np.ones(1_000))
    cohort = MetricCohort(*(MetricArm.of(values, ids) for values in losses), requests=2_000)
    units = units.plus(cohort)
    metric = units.on(metric + cohort.sums())
print(slots.clusters().model_dump_json(), loss.model_dump_json(), metric.model_dump_json())
"""


@pytest.mark.parametrize("processor", processors.parameters())
def test_recorded_decisions_are_the_same_on_every_processor(processor: Processor) -> None:
    told = json.loads(processor.run(AGAIN))
    assert len(told) > 5
    assert all(same for same, _ in told)
    assert not any("NOT the same" in text for _, text in told)


def test_sums_of_evidence_have_the_same_bits_on_every_processor() -> None:
    assert len({processor.run(SUMS) for processor in processors.ALL}) == 1


BEFORE = Finding(
    rule="mismatch",
    fired=False,
    text="10 of 20 units, p = 0.983, 1.25e-07",
    statistic=0.98308531995,
    threshold=0.01,
)


def decided(finding: Finding) -> Decision:
    return Decision(action="hold", rule="undecided", findings=(finding,))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"statistic": 0.98308531995 * (1 + 1e-13)}, True),
        ({"text": "10 of 20 units, p = 0.984, 1.26e-07"}, True),  # rounded up here, down there
        ({"statistic": 0.98308531995 * (1 + 1e-6)}, False),
        ({"statistic": None}, False),
        ({"fired": True}, False),
        ({"text": "11 of 20 units, p = 0.983, 1.25e-07"}, False),  # counts are not rounded
        ({"text": "10 of 20 units, p = 0.985, 1.25e-07"}, False),
        ({"text": "10 of 20 users, p = 0.983, 1.25e-07"}, False),
    ],
)
def test_only_what_rounding_changes_is_taken_as_the_same(changes: dict[str, object], verdict: object) -> None:
    assert _alike(decided(BEFORE), decided(BEFORE.model_copy(update=changes))) is verdict
