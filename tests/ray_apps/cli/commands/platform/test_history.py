"""The audit of a store from the command line: each kind of forgery is found, in a line, with exit code 1."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.registry.test_forgery import filled, forge_snapshot, rewrite_entries, swap_alias
from toque.functions.runtime.durable.slots import quotas_in
from toque.ray_apps.cli import main
from toque.ray_apps.cli.commands.project import _platform_environment
from toque.ray_apps.local import LocalError, Settings
from toque.ray_apps.local.audit_key import make_audit_key, open_platform_store
from toque.registry import Access, Journal, ObjectStore, Registry, Role, open_store
from toque.registry.access import workspace_store
from toque.registry.journal import high_water

SIGNER = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


@pytest.fixture
def model_files(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A platform's folder with its key, as `toque up` makes it."""
    monkeypatch.chdir(tmp_path)
    for name in ("TOQUE_HOME", "TOQUE_STORE", "TOQUE_AUDIT_KEY", "TOQUE_AUDIT_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    made = Settings(home=tmp_path / ".toque")
    made.home.mkdir()
    make_audit_key(made)
    return made


@pytest.fixture
def reg(settings: Settings, model_files: Path) -> Registry:
    return filled(open_platform_store(settings), model_files)


def test_a_store_as_it_was_written_has_no_finding(reg: Registry, settings: Settings, capsys: Any):
    team = workspace_store(reg.store, "team")
    Registry(team, actor="bob").create_model("m")
    Access(reg.store, actor="root").create_token("ada", "viewer")
    reg.sign_version("m", 1, SIGNER)
    assert main(("audit", "-o", "json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == []
    assert (report["journals"], report["signatures"], report["unsigned"]) == (3, 1, False)
    assert main(("audit", "m")) == 0
    assert "2 journals" in capsys.readouterr().out
    assert settings.audit_key_file.stat().st_mode & 0o777 == 0o600
    assert settings.audit_key_file.parent.stat().st_mode & 0o777 == 0o700


def replay_signature(store: ObjectStore) -> None:
    """Copy the signature of version 1 to version 2, whose files are the same then."""
    reg = Registry(store, actor="ada")
    (mark,) = reg.sign_version("m", 1, SIGNER).signatures
    bundle = reg.signature("m", 1, mark.sha256)
    store.create(f"models/m/signatures/00000002-{mark.sha256}.json", bundle)
    body = {"kind": "signed", "version": 2, "signer": mark.signer, "sha256": mark.sha256}
    reg.follow("m").transact(lambda _: body)


@pytest.mark.parametrize(
    ("forge", "finding"),
    [
        (forge_snapshot, "snapshot has a MAC that no audit key made"),
        (lambda store: rewrite_entries(store, keep_macs=True), "entry 3 has a MAC that no audit key made"),
        (lambda store: rewrite_entries(store, keep_macs=False), "entry 0 has no MAC of an audit key"),
        (swap_alias, "entry 73 has a MAC that no audit key made"),
        (replay_signature, "m@2, signature of"),
    ],
    ids=["snapshot", "rewritten", "without macs", "alias", "signature"],
)
def test_a_forgery_is_found(
    reg: Registry, forge: Callable[[ObjectStore], None], finding: str, tmp_path: Path, capsys: Any
):
    assert main(("audit",)) == 0
    forge(reg.store)
    assert main(("audit", "--publish", str(tmp_path / "heads"))) == 1
    assert [finding in line for line in capsys.readouterr().out.splitlines()[1:]] == [True]
    assert not (tmp_path / "heads").exists()
    assert main(("audit", "m", "-o", "json")) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 1


def test_a_forged_snapshot_is_found_without_a_key_and_that_is_said(
    reg: Registry, settings: Settings, capsys: Any
):
    settings.audit_key_file.unlink()
    forge_snapshot(reg.store)
    assert main(("audit",)) == 1
    printed = capsys.readouterr()
    assert "snapshot is not the state after entry" in printed.out
    assert "without an audit key" in printed.err


def test_a_forged_snapshot_of_a_function_s_state_is_found_without_a_key(settings: Settings, capsys: Any):
    settings.audit_key_file.unlink()
    settings.home.joinpath("store").rename(settings.home / "before")
    store = open_store(settings.store_url)
    quotas = quotas_in(store, "ada")
    for number in range(70):
        quotas.transact(lambda _, n=number: {"team": "a", "quota": {"cpus": float(n + 1), "gpus": 0.0}})  # type: ignore[misc]
    assert main(("audit",)) == 0
    text = store.get("quotas/snapshot.json").partition(b"\n")[2].replace(b"64.0", b"6400.0")
    store.put("quotas/snapshot.json", hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    capsys.readouterr()
    assert main(("audit",)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "quotas: snapshot is not the state after entry 63: it was changed"
    ]


def test_published_heads_find_what_was_cut_or_taken_away(reg: Registry, tmp_path: Path, capsys: Any):
    Journal(reg.store, "notes/m", actor="ada").append({"n": 1}, at=0)
    heads = str(tmp_path / "heads")
    for _ in range(2):
        assert main(("audit", "--publish", heads)) == 0
    assert len(list((tmp_path / "heads" / "heads").glob("*.json"))) == 2
    assert main(("audit", "--heads", heads)) == 0
    entries = list(reg.store.list("models/m/journal/entries/"))
    for key in [*entries[-2:], *reg.store.list("notes/m/"), *reg.store.list("models/m/journal/snapshot")]:
        reg.store.delete(key)
    high_water.forget()  # as on a machine that never saw the journals
    for file in tmp_path.rglob("*.seen"):
        file.unlink()
    assert main(("audit",)) == 0
    capsys.readouterr()
    assert main(("audit", "--heads", heads)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "models/m/journal ends after 72 entries; 74 were recorded",
        "notes/m is gone; it had 1 entries",
    ]
    (published, _) = sorted((tmp_path / "heads" / "heads").glob("*.json"))
    forged = re.sub(r"\b74\b", "72", published.read_text())  # a MAC may hold 74, too
    published.write_text(forged)
    assert main(("audit", "--heads", heads)) == 1
    assert f"{published.name} has a MAC that no audit key made" in capsys.readouterr().out


def test_heads_that_are_not_there_are_a_finding(reg: Registry, capsys: Any):
    del reg
    assert main(("audit", "--heads", "nowhere")) == 1
    assert "nowhere holds no published heads" in capsys.readouterr().out


def test_keys_are_rotated_and_retired(reg: Registry, settings: Settings, capsys: Any):
    assert main(("audit-keys", "rotate")) == 0
    reg = Registry(open_platform_store(settings), actor="ada")
    old, new = reg.store.audit_keys.ids
    reg.set_alias("m", "next", 2)
    assert main(("audit",)) == 0
    assert main(("audit-keys", "retire", new)) == 2  # the one that makes MACs
    assert main(("audit-keys", "retire", old)) == 0
    assert open_platform_store(settings).audit_keys.ids == (new,)
    assert settings.audit_key_file.stat().st_mode & 0o777 == 0o600
    assert main(("audit",)) == 0
    assert Registry(open_platform_store(settings), actor="x").get_version("m", "champion").version == 1
    capsys.readouterr()
    assert main(("audit-keys", "list", "-o", "json")) == 0
    assert json.loads(capsys.readouterr().out) == [{"id": new, "newest": True}]


def test_an_older_store_is_adopted_when_its_key_is_made(tmp_path: Path, model_files: Path):
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    old = filled(open_store(settings.store_url), model_files)
    Registry(workspace_store(old.store, "team"), actor="bob").create_model("m")
    make_audit_key(settings)
    store = open_platform_store(settings)
    for opened in (store, workspace_store(store, "team")):
        assert Registry(opened, actor="x").get_model("m").created_at is not None
    elsewhere = Settings(home=tmp_path / "elsewhere", store_url=settings.store_url)
    elsewhere.home.mkdir()
    with pytest.raises(LocalError, match="has audit keys already; copy their file to"):
        make_audit_key(elsewhere)
    assert not elsewhere.audit_key_file.exists()


def test_a_key_that_was_made_by_a_killed_start_is_taken_up_again(
    tmp_path: Path, model_files: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    filled(open_store(settings.store_url), model_files)
    move = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if path.name.endswith(".pending"):
            raise KeyboardInterrupt
        return move(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                make_audit_key(settings)
    assert not settings.audit_key_file.exists()
    make_audit_key(settings)
    assert Registry(open_platform_store(settings), actor="x").verify("m").entries == 74


@pytest.fixture
def other(tmp_path: Path) -> Callable[[str], str]:
    """Another platform's store: its address, under keys of its own, under this folder's, or without."""

    def make(kind: str) -> str:
        (files := tmp_path / f"files-{kind}").mkdir()
        home = tmp_path / "elsewhere"
        elsewhere = Settings(home=home, store_url=f"file://{tmp_path}/other")
        home.mkdir(exist_ok=True)
        if kind == "own keys":
            make_audit_key(elsewhere)
        filled(open_platform_store(elsewhere), files)
        return elsewhere.store_url

    return make


@pytest.mark.parametrize("kind", ["own keys", "no keys"])
@pytest.mark.parametrize("named", ["option", "variable"])
def test_another_stores_history_is_not_held_against_the_key_of_this_folder(
    settings: Settings,
    other: Callable[[str], str],
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    named: str,
) -> None:
    url = other(kind)
    given = ("--store", url) if named == "option" else ()
    if named == "variable":
        monkeypatch.setenv("TOQUE_STORE", url)
    code = main(("audit", *given))
    said = capsys.readouterr()
    assert (code, "is not one of" in said.err) == (0, True), said
    assert main(("backup", str(tmp_path / "backup"), "--no-redis", *given)) == 0
    assert main(("restore", str(tmp_path / "backup"), "--store", str(tmp_path / "restored"))) == 0
    assert main(("store", "copy", url, str(tmp_path / "copy"))) == 0
    assert main(("audit", "--store", str(tmp_path / "copy"))) == 0
    key = str(tmp_path / "elsewhere" / "keys" / "audit")
    if kind == "own keys":
        monkeypatch.setenv("TOQUE_AUDIT_KEY_FILE", key)
        capsys.readouterr()
        assert main(("audit", *given)) == 0
        assert "without an audit key" not in capsys.readouterr().err


def test_a_copy_of_this_folders_store_is_held_against_its_key(
    reg: Registry, tmp_path: Path, capsys: Any
) -> None:
    assert main(("backup", str(tmp_path / "backup"), "--no-redis")) == 0
    assert main(("restore", str(tmp_path / "backup"), "--store", str(tmp_path / "restored"))) == 0
    for copy in ("backup", "restored"):
        capsys.readouterr()
        assert main(("audit", "--store", str(tmp_path / copy))) == 0
        assert "without an audit key" not in capsys.readouterr().err
    forged = open_store(f"file://{tmp_path}/restored")
    rewrite_entries(forged, keep_macs=False)
    assert main(("audit", "--store", str(tmp_path / "restored"))) == 1


@pytest.mark.parametrize("adopted", ["absent", "garbage"])
def test_a_store_that_lost_its_record_of_adoption_is_still_this_folders(
    reg: Registry,
    settings: Settings,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    adopted: str,
) -> None:
    Access(open_platform_store(settings), actor="admin").create_token("ada", Role.viewer)
    assert main(("backup", str(tmp_path / "copy"), "--no-redis")) == 0
    copy = open_store(f"file://{tmp_path}/copy")
    copy.put("audit/adopted.json", b"{") if adopted == "garbage" else copy.delete("audit/adopted.json")
    capsys.readouterr()
    main(("audit", "--store", str(tmp_path / "copy")))
    assert "is not one of" not in capsys.readouterr().err


@pytest.mark.parametrize("named", [False, True])
def test_a_training_on_another_store_does_without_the_key_of_this_folder(
    settings: Settings, other: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    if named:
        monkeypatch.setenv("TOQUE_STORE", other("no keys"))
    found = _platform_environment(settings.home)
    assert ("TOQUE_AUDIT_KEY_FILE" in found) != named
