import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from toque.registry import (
    InvalidInput,
    Journal,
    ObjectStore,
    Refused,
    Registry,
    Table,
    open_store,
    workspace_store,
)
from toque.registry.audit_keys import AuditKeys
from toque.registry.transfer import copy_store, find_marker

KEYS = AuditKeys(["ab" * 32])


def filled(store: ObjectStore, files: Path) -> ObjectStore:
    """A store with a model, a table, a workspace, and what belongs to running processes."""
    registry = Registry(store, actor="ada")
    registry.create_model("price")
    registry.create_version("price", files)
    Table(store, "training/first").append(pa.table({"x": list(range(100))}))
    inside = workspace_store(store, "team")
    Journal(inside, "events/harvest", actor="ada").append({"fruit": "pear"}, at=0)
    Table(inside, "labels").append(pa.table({"x": [1.0, 2.0]}))
    store.put("leases/ticker/7", b"me")
    store.put("invocations/abc/lease.json", b"{}")
    store.put("subscriptions/tell.json", b'{"next": 1}')
    return store


def contents(store: ObjectStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list("") if not key.startswith(("copies/", "leases/"))}


def another(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, keys: AuditKeys | None = None
) -> ObjectStore:
    if kind == "folder":
        return open_store(f"file://{tmp_path}/{uuid.uuid4().hex}", audit_keys=keys)
    endpoint = request.getfixturevalue("s3_endpoint")
    return open_store(f"s3://toque/{uuid.uuid4().hex}?endpoint={endpoint}", audit_keys=keys)


@pytest.mark.parametrize("way", ["folder-s3", "s3-folder", "s3-s3", "folder-folder"])
def test_a_copy_holds_every_object_and_verifies_at_its_new_address(
    way: str, request: pytest.FixtureRequest, tmp_path: Path, model_files: Path
):
    start, end = (another(request, kind, tmp_path, KEYS) for kind in way.split("-"))
    source = filled(start, model_files)
    report = copy_store(source, end, scratch=tmp_path)
    assert report.findings == ()
    assert not report.verified.unsigned
    expected = contents(source)
    del expected["invocations/abc/lease.json"]
    assert contents(end) == expected
    assert (report.verified.tables, report.verified.rows) == (2, 102)
    marker = find_marker(end)
    assert marker is not None
    assert marker.whole_at == report.whole_at
    assert not marker.under_way
    assert Registry(end, actor="bob").verify("price") == Registry(source, actor="bob").verify("price")
    assert Table(workspace_store(end, "team"), "labels").read().num_rows == 2


def test_a_second_copy_writes_only_what_is_new_and_removes_what_is_gone(tmp_path: Path, model_files: Path):
    source = filled(open_store(f"file://{tmp_path}/a"), model_files)
    target = open_store(f"file://{tmp_path}/b")
    copy_store(source, target)
    assert copy_store(source, target).objects == 0
    Table(source, "training/first").append(pa.table({"x": [1]}))
    source.put("subscriptions/tell.json", b'{"next": 2}')  # of the same size
    source.delete("model-names/price")
    report = copy_store(source, target)
    assert (report.objects, report.removed, report.findings) == (3, 1, ())
    assert target.get("subscriptions/tell.json") == b'{"next": 2}'
    assert Table(target, "training/first").read().num_rows == 101


def test_a_target_with_anything_else_is_refused(tmp_path: Path, model_files: Path):
    source = filled(open_store(f"file://{tmp_path}/a"), model_files)
    target = open_store(f"file://{tmp_path}/b")
    target.put("something", b"")
    with pytest.raises(Refused, match="not empty and no copy"):
        copy_store(source, target)
    target.delete("something")
    copy_store(source, target)
    other = filled(open_store(f"file://{tmp_path}/c"), model_files)
    with pytest.raises(Refused, match=r"is a copy of .*/a, not of .*/c"):
        copy_store(other, target)
    Journal(target, "alarms/late", actor="eve").append({}, at=0)
    before = contents(target)
    with pytest.raises(Refused, match=r"alarms/late .* written to since"):
        copy_store(source, target)
    assert contents(target) == before


def test_an_entry_of_another_history_is_never_overwritten(tmp_path: Path, model_files: Path):
    source = filled(open_store(f"file://{tmp_path}/a"), model_files)
    target = open_store(f"file://{tmp_path}/b")
    copy_store(source, target)
    Journal(target, "alarms/late", actor="eve").append({"a": 1}, at=0)
    Journal(source, "alarms/late", actor="ada").append({"b": 2}, at=0)
    with pytest.raises(Refused, match=r"alarms/late/entries/00000000\.json .* history of its own"):
        copy_store(source, target)


def test_places_that_cannot_be_copied_are_refused(tmp_path: Path, model_files: Path):
    source = filled(open_store(f"file://{tmp_path}/a"), model_files)
    with pytest.raises(InvalidInput, match="part of a workspace"):
        copy_store(workspace_store(source, "team"), open_store(f"file://{tmp_path}/b"))
    with pytest.raises(InvalidInput, match="lie in each other"):
        copy_store(source, open_store(f"file://{tmp_path}/a/b"))


def test_damage_on_the_way_and_in_the_source_is_found(tmp_path: Path, model_files: Path):
    source = filled(open_store(f"file://{tmp_path}/a", audit_keys=KEYS), model_files)
    target = open_store(f"file://{tmp_path}/b", audit_keys=KEYS)
    key = "models/price/journal/entries/00000000.json"
    source.put(key, source.get(key).replace(b"ada", b"eve"))
    report = copy_store(source, target)
    assert any("models/price/journal entry 0" in finding for finding in report.findings)
    marker = find_marker(target)
    assert marker is not None
    assert marker.whole_at is None
