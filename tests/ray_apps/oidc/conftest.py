"""An issuer on this machine: a real HTTP server with generated keys, and tokens that it signs."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from toque.ray_apps.oidc import OidcSettings

AUDIENCE = "toque"
GRANTS = [
    {"claim": "groups", "value": "ml-payments", "grant": "operator:payments"},
    {"claim": "groups", "value": "readers", "grant": "viewer:*"},
    {"claim": ["realm_access", "roles"], "value": "scorer", "grant": "caller:payments:fraud"},
]
_TO_JWK = {"RS256": RSAAlgorithm.to_jwk, "ES256": ECAlgorithm.to_jwk, "EdDSA": OKPAlgorithm.to_jwk}


def new_key(algorithm: str) -> Any:
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            return ed25519.Ed25519PrivateKey.generate()


class Issuer:
    """The issuer's address, its keys and the documents it serves; `reads` counts those of its keys."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: dict[str, tuple[str, Any]] = {}
        self.reads = 0
        self.away = False
        self.changed: dict[str, Any] = {}  # documents by path that differ from the right ones

    def add_key(self, kid: str, algorithm: str = "ES256", key: Any = None) -> None:
        self.keys[kid] = (algorithm, key or new_key(algorithm))

    def jwks(self) -> dict[str, Any]:
        public = {kid: _TO_JWK[alg](key.public_key(), as_dict=True) for kid, (alg, key) in self.keys.items()}
        return {"keys": [{**entry, "kid": kid, "use": "sig"} for kid, entry in public.items()]}

    def document(self, path: str) -> Any:
        self.reads += path == "/keys"
        documents = {
            "/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/keys"},
            "/keys": self.jwks(),
        }
        return (documents | self.changed).get(path)

    def token(self, kid: str = "one", header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Sign a token for ada of group ml-payments; a claim of None is left out."""
        now = int(time.time())
        stated = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600}
        stated = {k: v for k, v in ({"groups": ["ml-payments"]} | stated | claims).items() if v is not None}
        algorithm, key = self.keys[kid]
        return jwt.encode(stated, key, algorithm, headers={"kid": kid} | (header or {}))

    def settings(self, **changes: Any) -> OidcSettings:
        given = {"issuer": self.url, "audience": AUDIENCE, "grants": GRANTS} | changes
        return OidcSettings.parse(json.dumps(given))


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = None if made.away else made.document(self.path)
            self.send_response(503 if made.away else 404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found if isinstance(found, bytes) else json.dumps(found).encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Issuer(f"http://127.0.0.1:{server.server_port}")
    made.add_key("one")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
