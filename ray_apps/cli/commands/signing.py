"""`toque models sign` and `verify`: the private key, and the judgement, stay on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_apps.cli.client import client_of
from ray_apps.cli.command import UsageError, add
from ray_apps.cli.output import say
from registry import RegistryError
from registry.access import signing

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands


def register(models: Commands) -> None:
    """Add the commands to the group of models."""
    signed = add(models, "sign", _sign, "sign a version's files in the OpenSSF model-signing format")
    signed.add_argument("model")
    signed.add_argument("version", type=int)
    signed.add_argument("--key", required=True, help="PEM file of an elliptic-curve private key")
    signed.add_argument("--password-file", help="file with the key's password")
    verified = add(models, "verify", _verify, "check a version's signature with a public key, here")
    verified.add_argument("model")
    verified.add_argument("version", type=int)
    verified.add_argument("--public-key", required=True, help="PEM file of the signer's public key")
    verified.add_argument("--save", help="write the signature here, as `model_signing verify key` reads it")


def _sign(given: argparse.Namespace) -> int:
    key = _read(given.key)
    password = _read(given.password_file).strip() if given.password_file else None
    path = f"/models/{given.model}/versions/{given.version}"
    client = client_of(given)
    try:
        bundle = signing.sign(given.model, _digests(client.get(path)), key, password=password)
        public = signing.public_of(key, password=password)
    except RegistryError as error:
        raise UsageError(f"{given.key}: {error}") from error
    client.send("POST", f"{path}/signatures", body={"bundle": bundle.decode(), "public_key": public})
    say(f"{given.model}@{given.version} is signed by the key {signing.fingerprint(public)}")
    return 0


def _verify(given: argparse.Namespace) -> int:
    client, public = client_of(given), _read(given.public_key)
    path = f"/models/{given.model}/versions/{given.version}"
    try:
        signer = signing.fingerprint(public)
        bundle = client.get(f"{path}/signatures/{signer}")["bundle"].encode()
        signing.check(bundle, _digests(client.get(path)), public)
    except RegistryError as error:
        raise UsageError(f"{given.model}@{given.version}: {error}") from error
    if given.save:
        Path(given.save).write_bytes(bundle)
    say(f"{given.model}@{given.version} is signed by the key {signer}")
    return 0


def _digests(version: dict[str, Any]) -> dict[str, str]:
    return {path: blob["sha256"] for path, blob in version["files"].items()}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path!r}: {error.strerror}") from error
