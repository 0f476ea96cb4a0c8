"""After an erasure nothing of the person is left in store, Redis and files, and what knew the person is listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pydantic import ValidationError

from tests.conditions.faults import FragileStore, KilledError
from tests.functions.maintenance.erasure_platform import (
    RIDER,
    T0,
    UNIT,
    Platform,
    filled,
    greet,
    prediction,
    rides,
    traces_in,
)
from tests.redis_server import RedisServer, running_redis
from toque.functions import Context, use_context
from toque.functions.maintenance.erasure.jobs import (
    MaintenanceError,
    erase_subject,
    finish_erasures,
    only_erasure,
    preview_erasure,
)
from toque.functions.maintenance.erasure.record import Erasures
from toque.functions.maintenance.erasure.subject import Subject, Traces
from toque.functions.prediction_log import outcomes, pseudonym
from toque.functions.prediction_log.records import TENSOR
from toque.functions.runtime.durable.ledger import Ledger
from toque.registry import Journal, Table
from toque.registry.store import FolderStore


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as found:
        yield found


@pytest.fixture
def platform(tmp_path: Path, server: RedisServer) -> Platform:
    return filled(tmp_path, server.url)


def erase(platform: Platform) -> Any:
    with use_context(platform.context):
        return erase_subject({"rider": RIDER}, UNIT, text=True)


def test_no_byte_of_the_person_is_left(platform: Platform):
    assert len(traces_in(platform, UNIT, RIDER)) > 10
    certificate = erase(platform)
    assert traces_in(platform, UNIT, RIDER) == []
    assert (certificate.left, certificate.silent_writers) == ([], [])
    assert certificate.removed == {"reports": 1, "memos": 1, "invocations": 1, "online features": 1}
    assert {name: found.rows for name, found in certificate.tables.items()} == {
        "features/default/rides": 1, "labels": 4, "predictions/late": 4, "rides/entities": 1, "training/late": 1,
    }  # fmt: skip
    assert (certificate.requested_by, certificate.pseudonyms) == ("ada", False)


def test_others_stay_with_their_labels_features_and_reports(platform: Platform):
    erase(platform)
    store, features = platform.context.store, platform.context.features()
    known = outcomes(store, "late", T0.replace(year=2025), T0.replace(year=2027))
    assert sorted(known.column("prediction_id").to_pylist()) == ["r0", "r1"]
    online = features.get_online_features(["rides:length"], [{"rider": RIDER}, {"rider": "rider-other"}])
    assert online.to_dict()["length"] == [None, 2.5]
    assert store.find("reports/other.html") is not None
    assert features.offline.read(rides).column("rider").to_pylist() == ["rider-other"]


def test_training_sets_made_before_are_listed_and_stay_readable(platform: Platform):
    certificate = erase(platform)
    assert platform.training_set in certificate.training_sets
    assert [(each.model, each.version) for each in certificate.models] == [("late", platform.version)]
    kept = Table(platform.context.store, platform.training_set.name).read(
        version=platform.training_set.version
    )
    assert kept.column("rider").to_pylist() == ["rider-other"]


def test_the_certificate_names_nobody_and_proves_whom_it_is_about(platform: Platform):
    certificate = erase(platform)
    subject = Subject(entity={"rider": RIDER}, unit=UNIT)
    assert subject.digest(certificate.salt) == certificate.subject_hash
    erasures = Erasures(platform.context.store)
    assert (erasures.find(certificate.id), erasures.pending()) == (certificate, [])
    again = erase(platform)
    assert again.id != certificate.id
    assert again.tables == {}
    assert [each.id for each in erasures.certificates()] == [certificate.id, again.id]


def a_minute_passes(store: Any) -> None:
    """Age the leases in a store, as time does for the next contender."""
    for path in (store.root / "leaders").rglob("*"):
        os.utime(path, (0, 0))


def test_who_comes_back_later_is_beyond_the_certificate(platform: Platform):
    certificate = erase(platform)
    platform.log.append(prediction("later", UNIT, RIDER))
    assert certificate.holds_until <= certificate.completed_at
    assert traces_in(platform, UNIT) != []
    erase(platform)
    assert traces_in(platform, UNIT, RIDER) == []


def test_what_cannot_be_changed_is_named(platform: Platform):
    store = platform.context.store
    Journal(store, "notes", actor="ada").append({"text": f"asked by {RIDER}"}, at=0)
    running = Ledger(store, actor="ada").submit(greet, {"rider": RIDER})
    broken = Table(store, "imported/rides")
    broken.append(pa.table({"rider": [RIDER]}))
    broken.append(pa.table({"rider": ["rider-other"]}))
    DeltaTable(broken.uri).create_checkpoint()  # as a writer that cleans its log leaves it
    store.delete("tables/imported/rides.delta/_delta_log/00000000000000000000.json")
    left = erase(platform).left
    assert [each for each in left if each.startswith("notes/entries/")]
    assert [each for each in left if running in each and "has not ended" in each]
    assert [each for each in left if "imported/rides" in each and "gaps" in each]
    assert len(left) == 3


def test_one_erasure_at_a_time_rewrites_a_store(platform: Platform):
    store = platform.context.store
    with only_erasure(store):
        with pytest.raises(MaintenanceError, match="yours is recorded"):
            erase(platform)
        assert len(Erasures(store).pending()) == 1
    with use_context(platform.context):
        assert len(finish_erasures()) == 1
    assert traces_in(platform, UNIT, RIDER) == []


def test_an_erasure_that_is_killed_again_and_again_completes(platform: Platform):
    here = platform.context
    kills = 0
    for fatal in [1, 2, 3, *range(4, 71, 6), 0]:
        fragile = FragileStore(FolderStore.root.fget(here.store))  # type: ignore[attr-defined,arg-type]
        fragile.fatal = fatal
        dying = Context(fragile, here.store_url, redis_url=here.redis_url, actor="ada", clock=lambda: T0)
        with use_context(dying):
            try:
                erase_subject({"rider": RIDER}, UNIT, text=True)
            except KilledError:
                kills += 1
                a_minute_passes(here.store)
            else:
                break
    assert kills > 3
    with use_context(here):
        assert finish_erasures() == []
    (certificate,) = Erasures(here.store).certificates()
    tables = certificate.tables
    assert traces_in(platform, UNIT, RIDER) == []
    assert tables["labels"].rows >= 4
    assert platform.training_set in certificate.training_sets


def test_a_durable_call_is_refused_since_its_arguments_would_name_the_person(tmp_path: Path):
    url = f"file://{tmp_path}/store"
    durable = Context(FolderStore(tmp_path / "store"), url, invocation="i1")
    for erasing in (erase_subject, preview_erasure):
        with use_context(durable), pytest.raises(MaintenanceError, match="call it directly"):
            erasing(None, UNIT)


def test_a_subject_needs_a_value():
    with pytest.raises(ValidationError, match="give a join key"):
        Subject()
    with pytest.raises(ValidationError, match="must not be empty"):
        Subject(entity={"rider": ""})


def test_a_short_value_is_found_under_its_name_only():
    traces = Traces.of(Subject(entity={"seat": "4"}), key=None)
    rows = pa.table({"seat": [4, 14], "row": ["4", "x"], "entities": ['{"seat": 4}', '{"row": 4}']})
    assert traces.columns(rows.schema) == ["seat", "entities"]
    assert traces.mask(rows).to_pylist() == [True, False]
    assert traces.in_bytes(b'{"rows": [{"seat": "4"}]}')
    assert traces.in_bytes(b'{"seat": [3, 4]}')
    assert not traces.in_bytes(b'{"row": 4}')
    assert not traces.in_bytes(b"4")


def test_a_long_value_is_found_in_any_text_on_request():
    traces = Traces.of(Subject(unit="jos\u00e9@example.org"), key=None, text=True)
    rows = pa.table(
        {"a": [["x", "jos\u00e9@example.org"], None, []], "b": ["n", "to jos\u00e9@example.org", None]}
    )
    assert traces.mask(rows).to_pylist() == [True, True, False]
    assert traces.in_bytes(b'{"to": "jos\\u00e9@example.org"}')


def test_a_long_value_is_found_in_the_bytes_of_tensors_and_of_large_values():
    traces = Traces.of(Subject(unit="anna.alvarez@example.org"), key=None, text=True)
    tensor = {"output": True, "name": "y", "datatype": "BYTES", "shape": [1], "sha256": None}
    data = [b"\x18\0\0\0anna.alvarez@example.org", b"\x01\0\0\0x"]
    rows = pa.table(
        {
            "tensors": pa.array([[tensor | {"data": each}] for each in data] + [None], pa.list_(TENSOR)),
            "data": pa.array([None, None, data[0]], pa.binary()),
        }
    )
    assert traces.columns(rows.schema) == ["tensors", "data"]
    assert traces.mask(rows).to_pylist() == [True, False, True]


def test_pseudonyms_are_erased_with_the_value_that_they_stand_for():
    traces = Traces.of(Subject(unit="u1"), key="secret")
    rows = pa.table({"unit": ["u1", pseudonym("u1", "secret"), pseudonym("u1", "other")]})
    assert traces.mask(rows).to_pylist() == [True, True, False]
