"""`toque models sign` and `verify`: the private key, and the judgement, stay on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toque.ray_apps.cli.arguments import MODEL, VERSION, arg, read_file
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.errors import Failed, UsageError
from toque.ray_apps.cli.output import message

if TYPE_CHECKING:
    from toque.registry.access.signing import Binding

# registry is imported by what needs it: it brings the tables, a third of a second.

_KEY = arg("--key FILE", "PEM file of an elliptic-curve private key", required=True)
_PASSWORD = arg("--password-file FILE", "file with the key's password")
_PUBLIC = arg("--public-key FILE", "PEM file of the signer's public key", required=True)
_SAVE = arg("--save FILE", "write the signature there, as `model_signing verify key` reads it")


def register(models: Commands) -> None:
    """Add the commands of this module to the group of models."""
    add(models, "sign", _sign, MODEL, VERSION, _KEY, _PASSWORD)
    add(models, "verify", _verify, MODEL, VERSION, _PUBLIC, _SAVE)


def _sign(given: Given) -> None:
    """Sign a version's files and serving tags in the OpenSSF model-signing format."""
    from toque.registry import RegistryError
    from toque.registry.access import signing

    key = read_file(given.key)
    password = read_file(given.password_file).strip() if given.password_file else None
    path = f"/models/{given.model}/versions/{given.version}"
    version = given.client.get(path)
    try:
        bundle = signing.sign(_binding(version), _digests(version), key, password=password)
        public = signing.public_of(key, password=password)
    except RegistryError as error:
        raise UsageError(f"{given.key}: {error}") from error
    given.client.send("POST", f"{path}/signatures", body={"bundle": bundle.decode(), "public_key": public})
    _print(given, signing.fingerprint(public))


def _verify(given: Given) -> None:
    """Check a version's signature with a public key, here."""
    from toque.registry import RegistryError
    from toque.registry.access import signing

    public = read_file(given.public_key)
    path = f"/models/{given.model}/versions/{given.version}"
    try:
        signer = signing.fingerprint(public)
    except RegistryError as error:
        raise UsageError(f"{given.public_key}: {error}") from error
    version = given.client.get(path)
    bundle = given.client.get(f"{path}/signatures/{signer}")["bundle"].encode()
    try:
        signing.check(bundle, _digests(version), public)
        signing.check_binding(bundle, _binding(version), required=_is_bound(version, bundle))
    except RegistryError as error:
        raise Failed(f"{given.model}@{given.version}: {error}") from error
    if given.save:
        Path(given.save).write_bytes(bundle)
    _print(given, signer)


def _print(given: Given, signer: str) -> None:
    text = f"{given.model}@{given.version} is signed by the key {signer}"
    message(given.output, text, {"model": given.model, "version": given.version, "signer": signer})


def _binding(version: dict[str, Any]) -> Binding:
    """What a signature of this version is bound to: as the platform describes it, which signs or is checked here."""
    from toque.registry.access.signing import Binding
    from toque.registry.models.serving_tags import serving_tags

    return Binding(version["model"], version["version"], serving_tags(version["tags"]))


def _is_bound(version: dict[str, Any], bundle: bytes) -> bool:
    """Whether a bundle was recorded as bound to its version; earlier releases recorded others."""
    digest = hashlib.sha256(bundle).hexdigest()
    return any(mark.get("bound", False) for mark in version["signatures"] if mark["sha256"] == digest)


def _digests(version: dict[str, Any]) -> dict[str, str]:
    return {path: blob["sha256"] for path, blob in version["files"].items()}
