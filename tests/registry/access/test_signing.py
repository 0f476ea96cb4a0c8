import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tests.registry.replica import SIGNATURE, champion, replica
from toque.registry import Damaged, InvalidInput, ModelPolicy, ObjectStore, Refused, Registry
from toque.registry.access import signing

THEIRS = json.loads(Path(__file__).with_name("model_signing_bundle.json").read_text())
FILES = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in THEIRS["files"].items()}
BINDING = signing.Binding("m", 1, {"feature_service": "flights"})


def private_pem(key: Any, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return pem


@pytest.fixture(params=[ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def key(request: pytest.FixtureRequest) -> bytes:
    return private_pem(ec.generate_private_key(request.param))


@pytest.fixture
def ada_key() -> bytes:
    return private_pem(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def model(store: ObjectStore, model_files: Path) -> Registry:
    reg = Registry(store, actor="ada")
    reg.create_model("m")
    reg.create_version("m", model_files)
    return reg


def test_a_bundle_of_the_model_signing_program_is_accepted():
    signing.check(json.dumps(THEIRS["bundle"]).encode(), FILES, THEIRS["public_key"])


@pytest.mark.parametrize(
    "files",
    [
        {**FILES, "model.bin": "0" * 64},
        {**FILES, "more.py": "0" * 64},
        {path: digest for path, digest in FILES.items() if path != "empty.txt"},
        {},
    ],
    ids=["changed", "added", "removed", "none"],
)
def test_a_signature_of_other_files_is_refused(files: dict[str, str]):
    with pytest.raises(Refused, match="of other files"):
        signing.check(json.dumps(THEIRS["bundle"]).encode(), files, THEIRS["public_key"])


def test_a_signature_verifies_and_a_flipped_bit_anywhere_breaks_it(key: bytes):
    bundle = json.loads(signing.sign(BINDING, FILES, key))
    public = signing.public_of(key)
    signing.check(json.dumps(bundle).encode(), FILES, public)
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    for at in range(0, len(payload), 7):
        bad = bytearray(payload)
        bad[at] ^= 1
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(bad).decode()
        with pytest.raises(Refused, match="not one of the key"):
            signing.check(json.dumps(bundle).encode(), FILES, public)


def test_a_signature_of_another_key_is_refused(ada_key: bytes):
    other = signing.public_of(private_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(Refused, match="not one of the key"):
        signing.check(signing.sign(BINDING, FILES, ada_key), FILES, other)


@pytest.mark.parametrize(
    "bundle", [b"", b"{}", b"[]", b'{"mediaType": "x"}', b"\xff", json.dumps({"dsseEnvelope": 1}).encode()]
)
def test_bytes_that_are_not_a_bundle_are_invalid(bundle: bytes):
    with pytest.raises(InvalidInput, match="not a bundle"):
        signing.check(bundle, FILES, THEIRS["public_key"])


def test_keys_of_other_kinds_and_wrong_passwords_are_invalid(ada_key: bytes):
    for bad in (b"", b"x", private_pem(ed25519.Ed25519PrivateKey.generate())):
        with pytest.raises(InvalidInput, match="private key"):
            signing.sign(BINDING, FILES, bad)
    with pytest.raises(InvalidInput, match="public key"):
        signing.check(b"{}", FILES, ada_key)
    with pytest.raises(ValueError, match="public key"):
        ModelPolicy(signers=("no key",))
    locked = private_pem(ec.generate_private_key(ec.SECP256R1()), b"open sesame")
    for password in (None, b"wrong"):
        with pytest.raises(InvalidInput, match="private key"):
            signing.sign(BINDING, FILES, locked, password=password)
    assert signing.sign(BINDING, FILES, locked, password=b"open sesame")


def test_a_signed_version_is_verified_offline_and_its_bundle_fits_the_files(
    model: Registry, ada_key: bytes, tmp_path: Path
):
    public = signing.public_of(ada_key)
    with pytest.raises(Refused, match="has no signature of the key"):
        model.verify_signature("m", 1, public)
    version = model.sign_version("m", 1, ada_key)
    (mark,) = version.signatures
    assert (mark.signer, mark.actor) == (signing.fingerprint(public), "ada")
    assert Registry(model.store, actor="x").verify_signature("m", 1, public) == mark
    folder = model.download("m", 1, tmp_path / "out")
    there = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    signing.check(model.signature("m", 1, mark.sha256), there, public)
    assert "signed by key" in model.card("m", 1)
    model.verify("m")


def test_a_signature_of_another_version_is_not_kept(model: Registry, model_files: Path, ada_key: bytes):
    (model_files / "model.pt2").write_bytes(b"other")
    model.create_version("m", model_files)
    signed = model.sign_version("m", 1, ada_key)
    bundle = model.signature("m", 1, signed.signatures[0].sha256)
    with pytest.raises(Refused, match=r"model\.pt2"):
        model.add_signature("m", 2, bundle, signing.public_of(ada_key))
    again = model.add_signature("m", 1, bundle, signing.public_of(ada_key))
    assert again.signatures == signed.signatures
    assert model.get_version("m", 2).signatures == ()


def test_a_signature_replayed_on_a_version_with_the_same_files_is_refused(
    model: Registry, model_files: Path, ada_key: bytes, tmp_path: Path
):
    public = signing.public_of(ada_key)
    model.create_version("m", model_files)
    model.create_model("other", policy=ModelPolicy(signers=(public,)))
    model.create_version("other", model_files)
    (mark,) = model.sign_version("m", 1, ada_key).signatures
    bundle = model.signature("m", 1, mark.sha256)
    for name, version in (("m", 2), ("other", 1)):
        with pytest.raises(Refused, match=r"is of m@1: its (version|model) is"):
            model.add_signature(name, version, bundle, public)
    # Who can write the store puts it there all the same, as an earlier release would have recorded it.
    model.store.create(f"models/other/signatures/00000001-{mark.sha256}.json", bundle)
    body = {"kind": "signed", "version": 1, "signer": mark.signer, "sha256": mark.sha256}
    model.follow("other").transact(lambda _: body)
    with pytest.raises(Refused, match="is of m@1: its model is 'm', not 'other'"):
        Registry(model.store, actor="replica").download("other", 1, tmp_path / "x")
    with pytest.raises(Damaged, match="is of m@1"):
        model.verify("other")


def test_a_signature_without_a_binding_is_kept_only_where_an_earlier_release_recorded_it(
    model: Registry, model_files: Path, ada_key: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    public = signing.public_of(ada_key)
    model.set_policy("m", ModelPolicy(signers=(public,)))
    monkeypatch.setattr(signing, "_BINDING", "ignored")
    (files,) = ({path: blob.sha256 for path, blob in v.files.items()} for v in model.list_versions("m"))
    bundle = signing.sign(signing.Binding("m", 1, {}), files, ada_key)
    monkeypatch.undo()
    with pytest.raises(Refused, match="names neither model nor version"):
        model.add_signature("m", 1, bundle, public)
    sha256 = hashlib.sha256(bundle).hexdigest()
    model.store.create(f"models/m/signatures/00000001-{sha256}.json", bundle)
    body = {"kind": "signed", "version": 1, "signer": signing.fingerprint(public), "sha256": sha256}
    model.follow("m").transact(lambda _: body)
    assert model.download("m", 1, tmp_path / "old").is_dir()
    model.verify("m")
    model.follow("m").transact(lambda _: {**body, "bound": True})
    with pytest.raises(Refused, match="names neither model nor version"):
        model.download("m", 1, tmp_path / "new")


def test_a_changed_serving_tag_asks_for_a_new_signature_and_other_tags_do_not(
    model: Registry, ada_key: bytes, tmp_path: Path
):
    model.set_policy("m", ModelPolicy(signers=(signing.public_of(ada_key),)))
    model.sign_version("m", 1, ada_key)
    model.set_version_tags("m", 1, {"owner": "ada"})
    assert model.download("m", 1, tmp_path / "x").is_dir()
    model.set_version_tags("m", 1, {"missing_features": "zero"})
    with pytest.raises(Refused, match="its serving_tags is "):
        Registry(model.store, actor="replica").download("m", 1, tmp_path / "y")
    with pytest.raises(Damaged, match="serving_tags"):
        model.verify("m")
    model.sign_version("m", 1, ada_key)
    assert model.download("m", 1, tmp_path / "y").is_dir()
    model.verify("m")


def test_a_policy_with_signers_allows_only_signed_versions(model: Registry, ada_key: bytes, tmp_path: Path):
    stranger = private_pem(ec.generate_private_key(ec.SECP256R1()))
    policy = ModelPolicy(guarded=frozenset({"champion"}), approvals=0, signers=(signing.public_of(ada_key),))
    model.set_policy("m", policy)
    model.sign_version("m", 1, stranger)
    with pytest.raises(Refused, match="not signed by one of its 1 signers"):
        model.promote("m", 1)
    with pytest.raises(Refused, match="not signed by one of the 1 signers"):
        model.download("m", 1, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    model.sign_version("m", 1, ada_key)
    model.promote("m", 1)
    cold = Registry(model.store, actor="replica")
    assert cold.download("m", "champion", tmp_path / "yes").is_dir()


def test_a_changed_or_lost_signature_is_found_and_refused_at_load(
    model: Registry, ada_key: bytes, tmp_path: Path
):
    model.set_policy("m", ModelPolicy(signers=(signing.public_of(ada_key),)))
    model.sign_version("m", 1, ada_key)
    model.sign_version("m", 1, ada_key)  # a second time changes nothing
    (key,) = model.store.list("models/m/signatures/")
    bundle = model.store.get(key)
    model.store.put(key, bundle.replace(b"dsse", b"dssf"))
    with pytest.raises(Damaged, match="was changed"):
        model.download("m", 1, tmp_path / "x")
    with pytest.raises(Damaged, match="was changed"):
        model.verify("m")
    model.store.delete(key)
    with pytest.raises(Damaged, match="is gone"):
        model.verify("m")
    model.sign_version("m", 1, ada_key)
    assert model.download("m", 1, tmp_path / "x").is_dir()
    with pytest.raises(Damaged, match="is gone"):  # what was there is missed all the same
        model.verify("m")
    model.store.put(key, bundle)
    model.verify("m")


def test_a_signature_survives_a_snapshot(model: Registry, ada_key: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toque.registry.journal.fold.SNAPSHOT_EVERY", 2)
    version = model.sign_version("m", 1, ada_key)
    model.set_version_tags("m", 1, {"a": "b"})
    model.set_version_tags("m", 1, {"a": "c"})
    assert Registry(model.store, actor="x").get_version("m", 1).signatures == version.signatures


def test_a_replica_refuses_an_unsigned_version_and_keeps_serving(
    store: ObjectStore, model_files: Path, ada_key: bytes, tmp_path: Path
):
    reg = Registry(store, actor="ada")
    reg.create_model("m")
    for _ in range(2):
        reg.create_version("m", model_files, signature=SIGNATURE)
    reg.set_policy("m", ModelPolicy(signers=(signing.public_of(ada_key),)))
    reg.sign_version("m", 1, ada_key)
    now = [0.0]
    engine = replica(store, tmp_path / "scratch", lambda: now[0])
    for version in (1, 2):
        reg.promote("m", version)
        assert champion(engine) == 1
    assert "not signed by one of the 1 signers" in engine.failures[2]
    reg.sign_version("m", 2, ada_key)
    now[0] += 100.0  # later than any pause after a failure
    engine.follow_once()
    assert engine.load(2).version == 2
    assert engine.describe()["champion"] == 2
