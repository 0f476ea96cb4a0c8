"""Who can write the store but has no audit key cannot forge its history: cold readers refuse, and `verify` finds it."""

import hashlib
import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from toque.registry import Damaged, Journal, ObjectStore, Refused, Registry, open_store, utc_now
from toque.registry.audit_keys import AuditKeys
from toque.registry.journal import heads, high_water
from toque.registry.journal.entry import parse_entry

KEY, NEW_KEY = "ab" * 32, "cd" * 32
PATH = "models/m/journal"


def store_at(url: str, *keys: str) -> ObjectStore:
    return open_store(url, audit_keys=AuditKeys(keys))


def filled(store: ObjectStore, files: Path) -> Registry:
    """A registry with a model of two versions, the first of them live, and enough changes for a snapshot."""
    reg = Registry(store, actor="ada")
    reg.create_model("m")
    for weights in (b"good", b"evil"):
        (files / "model.pt2").write_bytes(weights)
        reg.create_version("m", files)
    reg.set_alias("m", "champion", 1)
    for number in range(70):
        reg.set_version_tags("m", 2, {"n": str(number)})
    return reg


@pytest.fixture
def model(folder_url: str, model_files: Path) -> Registry:
    return filled(store_at(folder_url, KEY), model_files)


def cold(reg: Registry, *keys: str) -> Registry:
    return Registry(store_at(reg.store.url, *(keys or (KEY,))), actor="replica")


def forge_snapshot(store: ObjectStore) -> None:
    """Let the alias of the snapshot point to the other version, with a digest that fits."""
    text = store.get(f"{PATH}/snapshot.json").partition(b"\n")[2]
    forged = text.replace(b'"champion":1', b'"champion":2')
    assert forged != text
    store.put(f"{PATH}/snapshot.json", hashlib.sha256(forged).hexdigest().encode() + b"\n" + forged)


def rewrite_entries(store: ObjectStore, *, keep_macs: bool) -> None:
    """Let the entry that made the alias point to the other version, and chain all its successors anew."""
    previous = "0" * 64
    for key in list(store.list(f"{PATH}/entries/")):
        entry, _ = parse_entry(store.get(key), key)
        body = {**entry.body, "version": 2} if entry.body["kind"] == "alias" else entry.body
        mac = entry.mac if keep_macs else ""
        made = replace(entry, body=body, previous=previous, mac=mac).with_digest()
        store.put(key, made.to_bytes())
        previous = made.digest
    store.delete(f"{PATH}/snapshot.json")


def test_a_forged_snapshot_is_left_aside_by_a_cold_reader_and_found(
    model: Registry, caplog: pytest.LogCaptureFixture
):
    assert cold(model).get_version("m", "champion").version == 1
    forge_snapshot(model.store)
    with caplog.at_level(logging.ERROR):
        assert cold(model).get_version("m", "champion").version == 1
    assert "no audit key made: it was forged" in caplog.text
    assert "reading every entry instead" in caplog.text
    with pytest.raises(Damaged, match="snapshot has a MAC that no audit key made"):
        cold(model).verify("m")


def test_a_forged_snapshot_is_found_without_a_key_too(folder_url: str, model_files: Path):
    reg = filled(store_at(folder_url), model_files)
    reg.verify("m")
    forge_snapshot(reg.store)
    with pytest.raises(Damaged, match="snapshot is not the state after entry"):
        Registry(store_at(folder_url), actor="x").verify("m")


def test_a_snapshot_of_another_journal_or_workspace_does_not_verify(model: Registry):
    data = model.store.get(f"{PATH}/snapshot.json")
    entry = model.store.get(f"{PATH}/entries/00000000.json")
    for name, store in (("n", model.store), ("m", model.store.within("workspaces/w"))):
        store.put(f"models/{name}/journal/snapshot.json", data)
        store.put(f"models/{name}/journal/entries/00000000.json", entry)
        with pytest.raises(Damaged, match="forged, or moved from elsewhere"):
            Registry(store, actor="x").get_model(name)


@pytest.mark.parametrize("keep_macs", [True, False])
def test_an_entry_rewritten_with_its_successors_is_refused_and_found(
    model: Registry,
    tmp_path: Path,
    keep_macs: bool,  # noqa: FBT001
):
    rewrite_entries(model.store, keep_macs=keep_macs)
    high_water.forget()  # as on a machine that never saw the journal
    assert Registry(store_at(model.store.url), actor="x").get_version("m", "champion").version == 2
    problem = (
        "entry .* has a MAC that no audit key made" if keep_macs else "entry .* has no MAC of an audit key"
    )
    for refused in (
        lambda reg: reg.get_version("m", "champion"),
        lambda reg: reg.download("m", "champion", tmp_path / "x"),
        lambda reg: reg.verify("m"),
    ):
        with pytest.raises(Damaged, match=problem):
            refused(cold(model))
    assert not (tmp_path / "x").exists()


def swap_alias(store: ObjectStore) -> None:
    """Let the last entry point the alias to the other version, with a digest that fits."""
    last = list(store.list(f"{PATH}/entries/"))[-1]
    entry, carried = parse_entry(store.get(last), last)
    made = replace(
        entry, body={"kind": "alias", "alias": "champion", "version": 2, "reason": "", "clear": True}
    )
    store.put(last, made.with_digest().to_bytes(carried))


def test_a_swapped_alias_in_the_last_entry_is_refused(model: Registry):
    model.promote("m", 1)
    swap_alias(model.store)
    with pytest.raises(Damaged, match="no audit key made"):
        cold(model).get_version("m", "champion")
    with pytest.raises(Damaged, match="no audit key made"):
        cold(model).verify("m")


def test_a_process_without_a_key_may_read_and_not_append(model: Registry, folder_url: str):
    keyless = Registry(store_at(folder_url), actor="eve")
    assert keyless.get_version("m", "champion").version == 1
    heads.adopt(model.store, utc_now)
    for change in (lambda: keyless.set_alias("m", "champion", 2), lambda: keyless.create_model("other")):
        with pytest.raises(Refused, match="set TOQUE_AUDIT_KEY_FILE or TOQUE_AUDIT_KEY"):
            change()
    assert cold(model).verify("m").entries == 74


def test_a_store_older_than_its_keys_opens_once_adopted_and_only_as_it_was(
    folder_url: str, model_files: Path
):
    old = filled(store_at(folder_url), model_files)
    before = old.get_model("m")
    with pytest.raises(Damaged, match="toque store keys adopt"):
        cold(old).get_model("m")
    store = store_at(folder_url, KEY)
    assert heads.adopt(store, utc_now).journals[PATH].count == 74
    with pytest.raises(Refused, match="carry the MAC"):  # though the last entry does not
        Registry(store_at(folder_url), actor="eve").set_alias("m", "champion", 2)
    assert cold(old).get_model("m") == before
    cold(old).set_alias("m", "other", 2)
    assert cold(old).verify("m").entries == 75
    with pytest.raises(Refused, match="carry the MAC"):
        Registry(store_at(folder_url), actor="eve").set_alias("m", "champion", 2)


@pytest.mark.parametrize("keep_snapshot", [True, False])
@pytest.mark.parametrize("cut", [1, 20, 74])
def test_what_was_adopted_can_neither_be_rewritten_nor_cut(
    folder_url: str,
    model_files: Path,
    cut: int,
    keep_snapshot: bool,  # noqa: FBT001
):
    old = filled(store_at(folder_url), model_files)
    heads.adopt(store_at(folder_url, KEY), utc_now)
    keys = list(old.store.list(f"{PATH}/entries/"))
    if not keep_snapshot:
        old.store.delete(f"{PATH}/snapshot.json")
    for key in keys[-cut:]:
        old.store.delete(key)
    if cut < len(keys):
        with pytest.raises(Damaged, match=r"ends after \d+ entries, but had 74"):
            cold(old).verify("m")
        if not keep_snapshot:
            with pytest.raises(Damaged, match=r"ends after \d+ entries, but had 74"):
                cold(old).get_model("m")


def test_what_was_adopted_cannot_be_rewritten(folder_url: str, model_files: Path):
    old = filled(store_at(folder_url), model_files)
    heads.adopt(store_at(folder_url, KEY), utc_now)
    rewrite_entries(old.store, keep_macs=True)
    reader = cold(old).follow("m")
    for _ in range(2):
        with pytest.raises(Damaged, match="not the one that was there when the store got its keys"):
            reader.refresh()
        assert reader.state.aliases == {}
    old.store.delete("audit/adopted.json")
    with pytest.raises(Damaged, match="has no MAC of an audit key"):
        cold(old).get_model("m")


def test_a_forged_record_of_adoption_is_refused(folder_url: str, model_files: Path):
    old = filled(store_at(folder_url), model_files)
    heads.adopt(store_at(folder_url, KEY), utc_now)
    content = json.loads(old.store.get("audit/adopted.json"))
    content["journals"][PATH][0] += 1
    old.store.put("audit/adopted.json", json.dumps(content).encode())
    old.store.delete(f"{PATH}/snapshot.json")
    with pytest.raises(Damaged, match=r"adopted\.json has a MAC that no audit key made"):
        cold(old).get_model("m")


def test_keys_rotate_and_a_retired_one_counts_only_for_what_was_adopted(model: Registry, folder_url: str):
    both = cold(model, KEY, NEW_KEY)
    both.set_alias("m", "next", 2)
    assert cold(model, KEY, NEW_KEY).verify("m").entries == 75
    with pytest.raises(Damaged, match="is not among the audit keys"):
        cold(model, NEW_KEY).verify("m")
    heads.adopt(both.store, utc_now)
    assert cold(model, NEW_KEY).verify("m").entries == 75
    assert cold(model, NEW_KEY).get_version("m", "champion").version == 1
    journal = Journal(store_at(folder_url, KEY), PATH, actor="thief")  # of the retired key
    journal.trust(74, both.follow("m").journal.entry(74).digest)
    journal.append({"kind": "alias", "alias": "champion", "version": 2, "reason": "", "clear": True}, at=75)
    with pytest.raises(Damaged, match=r"entry 75 has the MAC of a key .* not among"):
        cold(model, NEW_KEY).get_version("m", "champion")


def test_an_adoption_under_other_keys_is_refused(model: Registry, folder_url: str):
    with pytest.raises(Damaged, match="is not among the audit keys"):
        heads.adopt(store_at(folder_url, NEW_KEY), utc_now)
    heads.adopt(store_at(folder_url, KEY), utc_now)
    with pytest.raises(Damaged, match="is not among the audit keys"):
        heads.adopt(store_at(folder_url, NEW_KEY), utc_now)
    assert cold(model).verify("m").entries == 74


def sent(store: ObjectStore) -> ObjectStore:
    """The store as another process gets it."""
    copy: ObjectStore = pickle.loads(pickle.dumps(store))  # noqa: S301  # our own bytes
    return copy


def test_a_store_is_pickled_without_its_keys(
    model: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for shown in (pickle.dumps(model.store), repr(model.store.audit_keys).encode()):
        assert KEY.encode() not in shown
        assert bytes.fromhex(KEY) not in shown
    assert not sent(model.store).audit_keys
    monkeypatch.setenv("TOQUE_AUDIT_KEY", KEY)
    assert Registry(sent(model.store), actor="x").verify("m").entries == 74
    monkeypatch.delenv("TOQUE_AUDIT_KEY")
    file = tmp_path / "key"
    file.write_text(f"# of 2026\n{KEY}\n")
    stored = open_store(model.store.url, audit_keys=AuditKeys.of_file(file))
    copy = sent(stored)
    assert Registry(copy, actor="x").verify("m").entries == 74
    file.write_text(f"{KEY}\n{NEW_KEY}\n")  # a running process signs with the new key from now on
    Registry(copy, actor="x").set_alias("m", "next", 2)
    with pytest.raises(Damaged, match="is not among the audit keys"):
        cold(model).get_model("m")
    assert cold(model, KEY, NEW_KEY).verify("m").entries == 75


@pytest.mark.parametrize("keys", ["short", "zz" * 32, "ab" * 31])
def test_what_is_no_key_is_refused_and_not_shown(keys: str):
    with pytest.raises(ValueError, match="64 or more hex digits") as raised:
        AuditKeys.of_environment({"TOQUE_AUDIT_KEY": keys})
    assert keys not in str(raised.value)


def test_keys_come_from_a_file_or_a_variable(tmp_path: Path):
    assert not AuditKeys.of_environment({})
    two = AuditKeys.of_environment({"TOQUE_AUDIT_KEY": f"{KEY}, {NEW_KEY.upper()}"})
    assert two.ids == AuditKeys([KEY, NEW_KEY]).ids
    with pytest.raises(ValueError, match="cannot be read"):
        AuditKeys.of_environment({"TOQUE_AUDIT_KEY_FILE": str(tmp_path / "none")})
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no key"):
        AuditKeys.of_environment({"TOQUE_AUDIT_KEY_FILE": str(tmp_path / "empty")})
