"""A store that version 0.1 wrote is read as before, and what was under way in it goes on.

`store_0_1.tar.gz` was written by the code of 0.1 with `write_store`, and `store_0_1.json` says what that code saw.
"""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.compat import reading, tasks
from tests.compat.project import DAY, DRIFT, NOW, PERFORMANCE, QUALITY
from tests.redis_server import running_redis
from toque.functions import Context, Invocation, use_context
from toque.functions.monitoring import watch_drift, watch_performance, watch_quality
from toque.functions.prediction_log import default_wal_root, drain, outcomes
from toque.functions.rollout import end_rollout, rollout_status
from toque.functions.rollout.explain import SAME_WITHIN
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.reference import current_reference
from toque.functions.runtime.triggers.events import publish, run_events
from toque.functions.runtime.triggers.schedule import run_due
from toque.ray_apps.cli.platform_folds import platform_fold
from toque.registry import Damaged, Registry, open_store, utc_now
from toque.registry.audit_keys import AuditKeys
from toque.registry.history import adopt_all, audit

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "store_0_1.json").read_text())
SEEN, NOTES = EXPECTED["seen"], EXPECTED["notes"]
IDS: dict[str, str] = NOTES["invocations"]
CODE_PATIENCE_S = 0.5
# Fields that later releases added to what is read; what 0.1 saw has none of them.
ADDED = {
    "champion_unanswered",
    "challenger_unanswered",
    "too_large",
    "preempting", "preemptions", "energy_j", "gpu_hours", "money", "share", "accept_code", "allow_code", "automatic", "automatic_approval", "claim", "demand", "overriders", "policy", "store_reads",
    "store_writes", "trace", "live", "live_alpha", "slow_ratio", "ramp", "ramp_hold", "error_margin", "promote_by", "go_back",
    "go_back_within", "step", "step_since", "next_start", "next_end", "propensity", "trusted_types", "declining", "keep_texts", "limit_s", "timed_out",
    "environment", "season", "split_share", "split_entry", "span", "next_square", "next_cross", "next_size", "first", "last",
    "observations", "unit_noise", "exact", "number", "failure", "without_challenger", "late", "by_returning_unit", "possible", "handles", "finished_later",
}  # fmt: skip
# Rules that later releases ask of an open rollout, too; decisions that were recorded are made again without them.
ADDED_RULES = {"live_errors", "live_missing", "live_latency", "service_shadow_done", "service_done", "ramp"}


@dataclass
class OldStore:
    """An unpacked copy of the store, and an empty Redis."""

    folder: Path
    redis_url: str

    def context(self, *, after: timedelta = timedelta(0)) -> Context:
        return reading.context_of(self.folder, self.redis_url, after=after)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


def unpacked(folder: Path) -> Path:
    with tarfile.open(HERE / "store_0_1.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "store"


@pytest.fixture(autouse=True)
def project_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOQUE_PROJECT", reading.PROJECT)
    catalog.discover(project=reading.PROJECT)


@pytest.fixture
def old(tmp_path: Path, redis_url: str) -> OldStore:
    """A copy of the test's own, to be written to."""
    return OldStore(unpacked(tmp_path), redis_url)


@pytest.fixture(scope="module")
def read_again(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> dict[str, Any]:
    """Everything that is to be seen, by the code of now."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TOQUE_PROJECT", reading.PROJECT)
    seen = reading.everything(unpacked(tmp_path_factory.mktemp("old")), redis_url, NOTES)["seen"]
    patch.undo()
    return seen


def _with_open_bounds(seen: Any) -> Any:
    """An effect's bound that is infinite reads as null, in Python as in JSON."""
    if isinstance(seen, dict):
        opened = {name: None for name in ("lower", "upper") if seen.get(name) in ("-inf", "inf")}
        return {name: _with_open_bounds(value) for name, value in (seen | opened).items()}
    return [_with_open_bounds(each) for each in seen] if isinstance(seen, list) else seen


def _with_current_references(seen: Any) -> Any:
    """References to functions of the platform as they read today: their modules have moved since."""
    if isinstance(seen, dict):
        return {
            name: current_reference(value)
            if name == "reference" and isinstance(value, str)
            else _with_current_references(value)
            for name, value in seen.items()
        }
    return [_with_current_references(each) for each in seen] if isinstance(seen, list) else seen


def _without_added(now: Any, before: Any) -> Any:
    """What is read now, without the fields of `ADDED` that were not there before."""
    if isinstance(now, dict) and isinstance(before, dict):
        left = {name: value for name, value in now.items() if name in before or name not in ADDED}
        return {name: _without_added(value, before.get(name)) for name, value in left.items()}
    if isinstance(now, list) and isinstance(before, list) and len(now) > len(before):
        now = [one for one in now if not (isinstance(one, dict) and one.get("rule") in ADDED_RULES)]
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        return [_without_added(*pair) for pair in zip(now, before, strict=True)]
    return now


def _as_rounded_here(now: Any, before: Any) -> Any:
    """What is read now, with the numbers that were computed anew as they were before, where they are as near as `explain` says."""
    if isinstance(now, dict) and isinstance(before, dict):
        return {name: _as_rounded_here(value, before.get(name)) for name, value in now.items()}
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        return [_as_rounded_here(*pair) for pair in zip(now, before, strict=True)]
    if isinstance(now, float) and isinstance(before, float):
        return before if now == pytest.approx(before, rel=SAME_WITHIN) else now
    within = f"the same within {SAME_WITHIN:g}: this processor rounds otherwise."
    return now.replace(within, "the same, bit for bit.") if isinstance(now, str) else now


@pytest.mark.parametrize("part", sorted(set(SEEN) - {"answers", "results_kept"}))
def test_a_part_reads_as_before(read_again: dict[str, Any], part: str) -> None:
    before = _with_open_bounds(_with_current_references(SEEN[part]))
    assert _as_rounded_here(_without_added(read_again[part], before), before) == before


def test_every_part_that_was_seen_is_compared(read_again: dict[str, Any]) -> None:
    assert set(read_again) == set(SEEN)


def test_stored_models_answer_as_before(read_again: dict[str, Any]) -> None:
    assert set(read_again["answers"]) == {"late@1", "late@2", "price@1", "price@2"}
    for name, outputs in SEEN["answers"].items():
        for output, values in outputs.items():
            for row, before in zip(read_again["answers"][name][output], values, strict=True):
                assert row == pytest.approx(before, rel=1e-5), name  # another processor rounds otherwise


def test_a_store_of_before_opens_under_audit_keys_once_adopted(tmp_path: Path) -> None:
    url = f"file://{unpacked(tmp_path)}"
    assert audit(open_store(url), fold_of=platform_fold).findings == ()
    keyed = open_store(url, audit_keys=AuditKeys(["ab" * 32]))
    with pytest.raises(Damaged, match="toque store keys adopt"):
        Registry(keyed, actor="reader").get_model("price")
    assert adopt_all(keyed, utc_now) == 54
    report = audit(keyed, fold_of=platform_fold)
    assert (report.journals, report.signatures, report.findings) == (54, 3, ())
    signed = Registry(keyed, actor="reader").verify_signature("price", 2, NOTES["signer"])
    assert not signed.bound
    Registry(keyed, actor="reader").set_version_tags("price", 2, {"owner": "ada"})
    assert audit(keyed).findings == ()


def test_a_kept_result_still_counts(old: OldStore) -> None:
    with use_context(old.context()) as used:
        assert tasks.square.remote_json({"number": 12}).result(timeout_s=60) == 144
        assert sorted(used.store.list("memos/")) == SEEN["results_kept"]["keys"]


@pytest.mark.slow  # workers start as on a cold machine
def test_what_waited_finishes(old: OldStore) -> None:
    with use_context(old.context()) as used:
        done = run_until_ended(used, "tidying", "building", "retraining", "doubling")
        assert done["doubling"].result(timeout_s=1) == 16
        built = done["building"].result(timeout_s=1)
        assert (built.name, built.version) == ("training/next", 1)
        tidied = done["tidying"].result(timeout_s=1)
        assert tidied.lost_runs == [NOTES["gone"]]
        retrained = done["retraining"].result(timeout_s=1)
        assert (retrained.action, retrained.model) == ("skip", "late")


@pytest.mark.slow  # workers start as on a cold machine
def test_what_was_under_way_goes_on(old: OldStore) -> None:
    with use_context(old.context()) as used:
        publish("orders", {"customer": "dora", "plate": 1})
        publish("orders", {"customer": "carl", "plate": 2})
        run_events(used)
        done = run_until_ended(used, "failed", "awaiting", "asleep", "killed")
        assert done["failed"].status() == "dead"
        failed = done["failed"].record()
        assert (failed.attempts, failed.failure.type, failed.failure.message) == (
            2,
            "ValueError",
            "no butter either",
        )
        assert gone_on(used, done["asleep"]) == [10, 20]
        assert gone_on(used, done["killed"]) == [8, "let go"]
        assert gone_on(used, done["awaiting"]) == {"customer": "carl", "plate": 2}


def test_a_dead_letter_is_driven_again(old: OldStore) -> None:
    with use_context(old.context()) as used:
        ledger = ledger_of(used)
        assert IDS["dead"] in [record.id for record in ledger.invocations(status="dead")]
        ledger.redrive(IDS["dead"])
        record = run_until_ended(used, "dead")["dead"].record()
        assert record.failure.message == "there is no bread"
        assert record.attempts == 1


def test_keys_of_before_give_the_invocations_of_before(old: OldStore) -> None:
    with use_context(old.context()):
        assert tasks.double.submit(21, key="answer").id == IDS["doubled"]
        assert tasks.double.submit(21, key="answer").result(timeout_s=5) == 42
        assert publish("harvest", {"fruit": "pear", "count": 3}, key="pears") == 0


def test_schedules_go_on_after_their_last_tick(old: OldStore) -> None:
    with use_context(old.context(after=2 * DAY)) as used:
        mine = reading.schedules()
        assert run_due(used, now=NOW + DAY, schedules=mine) == []
        fired = run_due(used, now=NOW + 2 * DAY, schedules=mine)
        assert {(each.schedule, each.tick) for each in fired} == {
            ("store_harvest", NOW + DAY + timedelta(hours=6)),
            ("inspect-late", NOW + DAY + timedelta(hours=6)),
        }


def test_a_subscription_goes_on_after_its_last_event(old: OldStore) -> None:
    with use_context(old.context()) as used:
        assert run_events(used) == 0
        publish("harvest", {"fruit": "quince", "count": 5})
        assert run_events(used) == 1


def test_records_in_the_files_of_a_killed_process_arrive(old: OldStore) -> None:
    used = old.context()
    moved = drain(used.store, old.redis_url, wal_root=default_wal_root(used.store_url))
    assert (moved.predictions, moved.labels, moved.adopted) == (5, 1, 2)
    rows = outcomes(used.store, "late", NOW, NOW + DAY, labelled_only=False).to_pylist()
    assert [(row["prediction_id"], row["label"]) for row in rows] == [
        ("late-0", 1.0), *((f"late-{i}", None) for i in range(1, 5))
    ]  # fmt: skip


def test_monitors_go_on_from_what_they_remember(old: OldStore) -> None:
    with use_context(old.context(after=DAY)):
        assert [
            watched.cohorts
            for watched in (
                watch_quality("late", QUALITY), watch_performance("late", PERFORMANCE), watch_drift("late", DRIFT)
            )
        ] == [1, 1, 1]  # fmt: skip


def test_an_open_rollout_is_ended_and_rolled_back(old: OldStore) -> None:
    with use_context(old.context()) as used:
        assert rollout_status("late").open is not None
        end_rollout("late", "roll_back", "enough")
        assert [one.stage for one in rollout_status("late").outcomes] == ["rolled_back", "rolled_back"]
        assert used.registry().traffic("late").versions == (1,)


def test_the_governed_model_is_governed_on(old: OldStore) -> None:
    registry = old.context().registry()
    registry.rollback("price", reason="as it was")
    assert registry.alias_at("price", "champion", NOW) == 1
    assert registry.verify("price").entries == SEEN["models"]["price"]["verified"]["entries"] + 1
    made = registry.get_version("price", 3)
    assert (
        registry.create_version("price", HERE / "project.py", key="first-3", allow_code=["project.py"])
        == made
    )


def run_until_ended(used: Context, *names: str, within_s: float = 240) -> dict[str, Invocation[Any]]:
    """Let an executor work until these have ended; one with steps of other code is not waited for long."""
    executor = Executor(used, ledger_of(used), code_patience_s=CODE_PATIENCE_S)
    found = {name: Invocation.of(IDS[name]) for name in names}
    deadline = time.monotonic() + within_s
    try:
        while left := [name for name, each in found.items() if not each.record().ended]:
            assert time.monotonic() < deadline, [(name, found[name].record()) for name in left]
            executor.poll()
            time.sleep(0.05)
    finally:
        executor.close()
    return found


def gone_on(used: Context, invocation: Invocation[Any]) -> Any:
    """The result of a workflow that had steps: of its own code at once, else refused with the reason, and redriven."""
    record = invocation.record()
    if record.status == "dead":
        assert record.failure is not None
        assert record.failure.type == "CodeChanged"
        assert f"{len(record.steps)} recorded steps of code {record.started_digest}" in record.failure.message
        ledger_of(used).redrive(invocation.id)
        name = next(name for name, each in IDS.items() if each == invocation.id)
        run_until_ended(used, name)
    return invocation.result(timeout_s=1)
