"""Signatures in the OpenSSF model-signing format, made and verified offline with an elliptic-curve key.

A signature is a Sigstore bundle: a DSSE envelope around an in-toto statement that lists each file's SHA-256. Those
are the digests the registry names blobs by, so neither signing nor checking reads a file here, and the
`model_signing` program verifies a downloaded version with the same bundle. The statement also names the model, the
version and its serving tags, in a field of the predicate of the kind that the format lets verifiers pass over.
Source: https://github.com/ossf/model-signing-spec and https://github.com/secure-systems-lab/dsse
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from toque.registry.errors import InvalidInput, Refused

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_BINDING = "toque"  # the predicate's field with the binding
_SIGNATURE_FILE = "model.sig"  # where `model_signing` looks for a bundle beside the files
_HASHES: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}


@dataclass(frozen=True, slots=True)
class Binding:
    """What a signature is bound to besides files: a version of a model, and its serving tags."""

    model: str
    version: int
    serving_tags: Mapping[str, str]


def sign(
    binding: Binding, files: Mapping[str, str], private_key: bytes, *, password: bytes | None = None
) -> bytes:
    """Sign files (path -> SHA-256 in hex) as those of one version of a model; returns the bundle.

    private_key: PEM of an elliptic-curve key on P-256, P-384 or P-521.
    Raises: InvalidInput for any other key or a wrong password.
    """
    key = _private(private_key, password)
    payload = json.dumps(_statement(binding, files)).encode()
    signature = key.sign(_pae(_PAYLOAD_TYPE, payload), ec.ECDSA(_HASHES[key.curve.key_size]))
    bundle = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle).encode()


def check(bundle: bytes, files: Mapping[str, str], public_key: bytes | str) -> None:
    """Verify that `bundle` signs exactly these files (path -> SHA-256 in hex) with this key.

    Raises: Refused if it does not, saying how; InvalidInput if it is not a bundle or the key is not a public key.
    """
    key = _public(public_key)
    envelope = _envelope(bundle)
    payload, signature = base64.b64decode(envelope["payload"]), envelope["signatures"][0]["sig"]
    try:
        key.verify(
            base64.b64decode(signature),
            _pae(envelope["payloadType"], payload),
            ec.ECDSA(_HASHES[key.curve.key_size]),
        )
    except InvalidSignature as error:
        raise Refused(f"the signature is not one of the key {_hint(key)[:12]}…") from error
    signed = _signed_files(payload)
    differing = sorted(path for path in {*signed, *files} if signed.get(path) != files.get(path))
    if differing:
        raise Refused(f"the signature is of other files: {differing} differ")


def check_binding(bundle: bytes, binding: Binding, *, required: bool) -> None:
    """Check that `bundle` is bound to this version and these serving tags; `check` verifies that it is signed.

    required: refuse a bundle that is bound to nothing; releases before bindings made such.
    Raises: Refused, naming what differs; InvalidInput if it is not a bundle.
    """
    signed = json.loads(base64.b64decode(_envelope(bundle)["payload"]))["predicate"].get(_BINDING)
    expected = asdict(binding)
    if signed is None:
        if required:
            raise Refused(
                "the signature names neither model nor version nor serving tags, so it would fit any version "
                "with these files; sign with `toque models sign`"
            )
        return
    for field, value in expected.items():
        if signed.get(field) != value:
            raise Refused(
                f"the signature is of {signed.get('model')}@{signed.get('version')}: its {field} is "
                f"{signed.get(field)!r}, not {value!r}"
            )


def fingerprint(public_key: bytes | str) -> str:
    """Fingerprint by which a bundle names its key: SHA-256 of the PEM. Raises: InvalidInput if it is not a public key."""
    return _hint(_public(public_key))


def canonical(public_key: bytes | str) -> str:
    """Rewrite a public key as canonical PEM. Raises: InvalidInput if it is not a public key."""
    return _pem(_public(public_key)).decode()


def public_of(private_key: bytes, *, password: bytes | None = None) -> str:
    """Derive the public key of a private one, as PEM. Raises: InvalidInput."""
    return _pem(_private(private_key, password).public_key()).decode()


def _statement(binding: Binding, files: Mapping[str, str]) -> dict[str, Any]:
    ordered = sorted(files.items())
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in ordered)).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": f"{binding.model}@{binding.version}", "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [_SIGNATURE_FILE],
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": digest} for path, digest in ordered
            ],
            _BINDING: asdict(binding),
        },
    }


def _envelope(bundle: bytes) -> dict[str, Any]:
    """Parse the envelope of a bundle with one signature. Raises: InvalidInput."""
    try:
        content = json.loads(bundle)
        envelope: dict[str, Any] = content["dsseEnvelope"]
        single = len(envelope["signatures"]) == 1 and envelope["payloadType"] == _PAYLOAD_TYPE
        base64.b64decode(envelope["payload"], validate=True)
        base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        if content["mediaType"] != _MEDIA_TYPE or not single:
            raise ValueError(f"want media type {_MEDIA_TYPE} and one signature of {_PAYLOAD_TYPE}")  # noqa: TRY301 - one message for all
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidInput(f"not a bundle of the OpenSSF model-signing format: {error!r}") from error
    return envelope


def _signed_files(payload: bytes) -> dict[str, str]:
    """Parse a statement to the signed files (path -> SHA-256). Raises: Refused if the format is not version 1."""
    statement = json.loads(payload)
    if statement.get("_type") != _STATEMENT or statement.get("predicateType") != _PREDICATE:
        raise Refused(
            f"the statement is a {statement.get('predicateType')!r}; this release reads {_PREDICATE!r}"
        )
    predicate = statement["predicate"]
    kind = (predicate["serialization"]["method"], {each["algorithm"] for each in predicate["resources"]})
    if kind != ("files", {"sha256"}):
        raise Refused(f"the statement is of {kind}; this release reads whole files by sha256")
    return {each["name"]: each["digest"] for each in predicate["resources"]}


def _pae(kind: str, payload: bytes) -> bytes:
    """Encode a payload for signing by DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _private(pem: bytes, password: bytes | None) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInput(f"private key: {error}; want PEM, and its password if it has one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.key_size not in _HASHES:
        raise InvalidInput("private key: want one on the curve P-256, P-384 or P-521")
    return key


def _public(pem: bytes | str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInput(f"public key: {error}; want PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size not in _HASHES:
        raise InvalidInput("public key: want one on the curve P-256, P-384 or P-521")
    return key


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    return hashlib.sha256(_pem(key)).hexdigest()
