"""Signing from the command line, against a gateway on a real port."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from toque.ray_apps.cli import main
from toque.registry.access import signing


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """Files with a private key and its public one."""
    private = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "key.pub").write_text(signing.public_of(private))
    return str(tmp_path / "key.pem"), str(tmp_path / "key.pub")


def test_a_version_is_signed_and_verified_on_this_machine(
    platform: Any, model: str, keys: tuple[str, str], tmp_path: Path, capsys: Any
):
    private, public = keys
    assert main(("models", "verify", model, "1", "--public-key", public)) == 1
    assert "has no signature of the key" in capsys.readouterr().err
    assert main(("models", "sign", model, "1", "--key", private)) == 0
    saved = tmp_path / "model.sig"
    assert main(("models", "verify", model, "1", "--public-key", public, "--save", str(saved))) == 0
    fingerprint = signing.fingerprint(Path(public).read_text())
    assert capsys.readouterr().out.count(fingerprint) == 2
    version = platform.registry.get_version(model, 1)
    assert [(mark.signer, mark.actor) for mark in version.signatures] == [(fingerprint, "ada")]
    files = {path: blob.sha256 for path, blob in version.files.items()}
    signing.check(saved.read_bytes(), files, Path(public).read_text())


def test_what_is_no_key_is_told(platform: Any, model: str, keys: tuple[str, str], capsys: Any):
    private, public = keys
    for arguments in (("sign", model, "1", "--key", public), ("verify", model, "1", "--public-key", private)):
        assert main(("models", *arguments)) == 2
        assert "key: " in capsys.readouterr().err
    assert main(("models", "sign", model, "1", "--key", "/nowhere")) == 2
    assert "cannot read '/nowhere'" in capsys.readouterr().err
