"""Makes the certificates of a laboratory's machines: one authority, and one certificate for all of their addresses.

It names the head, too: nodes join by that name, and a certificate must hold the name that its machine is called by.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster.lab import FIRST, NETWORK

MACHINES = 20


def write_certificates(folder: Path) -> dict[str, str]:
    """Write ca.pem, cert.pem and key.pem; returns the variables by which Ray uses them."""
    folder.mkdir(parents=True)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("lab", "lab", authority.public_key(), authority, x509.BasicConstraints(True, None))
    addresses = ["127.0.0.1", *(f"{NETWORK}.{FIRST + number}" for number in range(MACHINES))]
    names = x509.SubjectAlternativeName(
        [x509.DNSName("head"), *(x509.IPAddress(ipaddress.ip_address(each)) for each in addresses)]
    )
    own = _certificate("machine", "lab", key.public_key(), authority, names)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = {"ca.pem": _pem(root), "cert.pem": _pem(own), "key.pem": private}
    for name, content in files.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(content)
    places = {"CA_CERT": "ca.pem", "SERVER_CERT": "cert.pem", "SERVER_KEY": "key.pem"}
    return {"RAY_USE_TLS": "1", **{f"RAY_TLS_{name}": str(folder / file) for name, file in places.items()}}


def _certificate(
    subject: str,
    issuer: str,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        .sign(signer, hashes.SHA256())
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
