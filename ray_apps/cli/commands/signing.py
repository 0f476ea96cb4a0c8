"""`toque models sign` and `verify`: the private key, and the judgement, stay on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import client_of
from ray_apps.cli.command import MODEL, VERSION, Failed, UsageError, add
from ray_apps.cli.names import known_model
from ray_apps.cli.output import message

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

# registry is imported by what needs it: it brings the tables, a third of a second.


def register(models: Commands) -> None:
    """Add the commands of this module to the group of models."""
    signed = add(models, "sign", _sign, "sign a version's files in the OpenSSF model-signing format")
    signed.add_argument("model", help=MODEL)
    signed.add_argument("version", type=int, help=VERSION)
    signed.add_argument(
        "--key", required=True, metavar="FILE", help="PEM file of an elliptic-curve private key"
    )
    signed.add_argument("--password-file", metavar="FILE", help="file with the key's password")
    verified = add(models, "verify", _verify, "check a version's signature with a public key, here")
    verified.add_argument("model", help=MODEL)
    verified.add_argument("version", type=int, help=VERSION)
    verified.add_argument(
        "--public-key", required=True, metavar="FILE", help="PEM file of the signer's public key"
    )
    verified.add_argument(
        "--save", metavar="FILE", help="write the signature there, as `model_signing verify key` reads it"
    )


def _sign(given: argparse.Namespace) -> int:
    from registry import RegistryError
    from registry.access import signing

    key = _read(given.key)
    password = _read(given.password_file).strip() if given.password_file else None
    path = f"/models/{given.model}/versions/{given.version}"
    client = client_of(given)
    with known_model(client, given.model, given.version):
        digests = _digests(client.get(path))
    try:
        bundle = signing.sign(given.model, digests, key, password=password)
        public = signing.public_of(key, password=password)
    except RegistryError as error:
        raise UsageError(f"{given.key}: {error}") from error
    client.send("POST", f"{path}/signatures", body={"bundle": bundle.decode(), "public_key": public})
    _print(given, signing.fingerprint(public))
    return 0


def _verify(given: argparse.Namespace) -> int:
    from registry import RegistryError
    from registry.access import signing

    client, public = client_of(given), _read(given.public_key)
    path = f"/models/{given.model}/versions/{given.version}"
    try:
        signer = signing.fingerprint(public)
    except RegistryError as error:
        raise UsageError(f"{given.public_key}: {error}") from error
    with known_model(client, given.model, given.version):
        digests = _digests(client.get(path))
        bundle = client.get(f"{path}/signatures/{signer}")["bundle"].encode()
    try:
        signing.check(bundle, digests, public)
    except RegistryError as error:
        raise Failed(f"{given.model}@{given.version}: {error}") from error
    if given.save:
        Path(given.save).write_bytes(bundle)
    _print(given, signer)
    return 0


def _print(given: argparse.Namespace, signer: str) -> None:
    text = f"{given.model}@{given.version} is signed by the key {signer}"
    message(given.output, text, {"model": given.model, "version": given.version, "signer": signer})


def _digests(version: dict[str, Any]) -> dict[str, str]:
    return {path: blob["sha256"] for path, blob in version["files"].items()}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path!r}: {error.strerror}") from error
