"""What a newer release marks as such is refused with the remedy, and never misread."""

import json

import msgpack
import pytest

from tests.functions.prediction_log.logbook import record
from toque.functions.prediction_log.records import decode_prediction
from toque.functions.prediction_log.writing.columns import label_columns
from toque.functions.prediction_log.writing.stream import entries_of
from toque.functions.runtime.durable.ledger import Ledger
from toque.registry import Access, Journal, NewerFormat, ObjectStore, Registry, open_store
from toque.registry.audit_keys import AuditKeys
from toque.registry.history import audit
from toque.registry.journal import snapshot
from toque.registry.journal.entry import parse_entry

UPGRADE = r"a newer one wrote it; upgrade this process \(docs/upgrade\.md\)"


@pytest.fixture(params=[AuditKeys(), AuditKeys(["ab" * 32])], ids=["no-keys", "keys"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return open_store(tmp_path_factory.mktemp("store").as_uri(), audit_keys=request.param)


def marked(store: ObjectStore, key: str) -> None:
    """Mark a stored object of JSON as one of format 2."""
    store.put(key, json.dumps(json.loads(store.get(key)) | {"format": 2, "new": [1]}).encode())


def test_an_entry_is_refused(store: ObjectStore):
    registry = Registry(store, actor="ada")
    registry.create_model("price")
    marked(store, "models/price/journal/entries/00000000.json")
    with pytest.raises(
        NewerFormat, match=rf"models/price/journal entry 0 has format 2, .* reads 1: {UPGRADE}"
    ):
        Registry(store, actor="bob").get_model("price")
    with pytest.raises(NewerFormat):
        Registry(store, actor="bob").create_model("price")
    assert any("upgrade this process" in finding for finding in audit(store).findings)


def test_an_entry_carried_by_another_is_refused():
    with pytest.raises(NewerFormat):
        parse_entry(json.dumps({"number": 1, "carried": [{"format": 2}]}).encode(), "here")


def test_a_snapshot_is_left_aside_and_the_entries_are_read(store: ObjectStore):
    registry = Registry(store, actor="ada")
    registry.create_model("price")
    for number in range(70):
        registry.set_model_tags("price", {"number": str(number)})
    path = "models/price/journal"
    digest, _, text = store.get(snapshot.key(path)).partition(b"\n")
    changed = json.dumps(json.loads(text) | {"format": 2, "next": 3}).encode()
    store.put(snapshot.key(path), snapshot._sha256(changed).encode() + b"\n" + changed)
    assert digest
    assert Registry(store, actor="bob").get_model("price").tags["number"] == "69"


def test_a_kind_of_change_that_is_not_known_is_refused(store: ObjectStore):
    access = Access(store, actor="root")
    access.create_token("ada", "viewer")
    Journal(store, "access/journal", actor="root").append({"kind": "suspended", "id": "x"}, at=1)
    with pytest.raises(NewerFormat, match=f"access/journal entry 1 has format 'suspended' .*{UPGRADE}"):
        Access(store, actor="bob").list_tokens()


def test_a_change_of_an_invocation_that_is_not_known_is_refused(store: ObjectStore):
    first = {
        "reference": "tests:f",
        "function": "f",
        "arguments": {},
        "key": None,
        "digest": "d",
        "kind": "submitted",
    }
    journal = Journal(store, "invocations/abc", actor="ada")
    journal.append(first, at=0)
    journal.append({"kind": "moved"}, at=1)
    with pytest.raises(NewerFormat, match="invocation abc entry 1 has format moved"):
        Ledger(store, actor="ada").read("abc")


def test_records_with_other_fields_are_refused():
    fields = msgpack.unpackb(record("a"))
    with pytest.raises(
        NewerFormat, match=f"a prediction in the log has format 15 fields, .* reads 19 fields: {UPGRADE}"
    ):
        decode_prediction(msgpack.packb([*fields, "more"]))
    with pytest.raises(NewerFormat, match="has format dict"):
        decode_prediction(msgpack.packb({"id": "a"}))
    with pytest.raises(NewerFormat, match="a label in the log has format 6 fields"):
        label_columns([msgpack.packb([["a", 1.0, 0, 0, None, "more"]])])


def test_an_entry_of_the_stream_with_other_fields_is_refused():
    class Client:
        def xrange(self, *_: object, **__: object) -> list[object]:
            return [(b"1-0", {b"frames2": b""})]

    with pytest.raises(NewerFormat, match=r"toque:labels:w: an entry has format .*frames2.* reads frames"):
        list(entries_of(Client(), "toque:labels:w", 1))
