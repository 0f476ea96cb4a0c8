"""What stands between Serve and HAProxy closes what Serve leaves open, and lets HAProxy see that a replica is gone."""

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from tests.ports import free_port
from tests.waiting import until
from toque.ray_apps.serve.haproxy_supervisor import processes_of
from toque.ray_apps.serve.settings import HAPROXY, serve_settings


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """The file that this version of Serve writes, for doors on every address and no application."""
    return write(tmp_path, {}, host="0.0.0.0")  # noqa: S104  # it is read, not listened on


def write(
    tmp_path: Path,
    servers: dict[str, int],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    fallback: ServerConfig | None = None,
    application: str = "app",
    prefix: str = "/",
) -> Path:
    """Write the file as Serve does. servers: ports of the replicas of an application at `prefix`, by name; fallback: Serve's proxy."""
    seconds = int(serve_settings()["RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S"])
    served = HAProxyConfig(
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        metrics_socket_path=str(tmp_path / "metrics.sock"),
        timeout_connect_s=seconds,
        http_options=HTTPOptions(host=host, port=port or free_port()),
        grpc_options=gRPCOptions(),
        stats_port=free_port(),
        metrics_port=free_port(),
    )
    file = tmp_path / "haproxy.cfg"
    replicas = [ServerConfig(name, "127.0.0.1", port) for name, port in servers.items()]
    name = f"http-{application}"
    backend = BackendConfig(
        app_name=application, name=name, path_prefix=prefix, servers=replicas, fallback_server=fallback
    )
    backends = {name: backend} if servers or fallback else {}
    HAProxyApi(served, backends, str(file))._generate_config_file_internal()
    return file


def launch(configuration: Path, **environment: str) -> list[str]:
    """Let HAProxy check the file by way of the script; returns the lines that bind."""
    done = subprocess.run(
        [str(HAPROXY), "-c", "-f", str(configuration)],
        env=_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = configuration.read_text()
    assert "mode 600 level admin" in text
    assert "mode 666" not in text
    return [line.strip() for line in text.splitlines() if line.strip().startswith("bind ")]


def test_pages_of_statistics_leave_every_interface_but_the_doors_stay(configuration: Path) -> None:
    before = configuration.read_text()
    assert "mode 666 level admin" in before  # else the script is needless
    metrics, door, pages = launch(configuration)
    assert metrics.startswith("bind 127.0.0.1:")
    assert door.startswith("bind *:")
    assert pages.startswith("bind 127.0.0.1:")
    assert launch(configuration) == [metrics, door, pages]  # as after a reload that changed nothing


def test_the_pages_go_to_the_address_that_a_cluster_names(configuration: Path) -> None:
    metrics, _, pages = launch(configuration, TOQUE_METRICS_ADDRESS="127.0.0.2")
    assert [metrics.rpartition(":")[0], pages.rpartition(":")[0]] == ["bind 127.0.0.2"] * 2


def test_a_requests_address_is_replaced_unless_a_trusted_proxy_says_it(configuration: Path) -> None:
    for proxies in ("", "10.0.0.0/8 fd00::/8"):
        launch(configuration, TOQUE_TRUSTED_PROXIES=proxies)
        text = configuration.read_text()
        lines = [line.strip() for line in text.splitlines() if "X-Forwarded-For" in line]
        assert lines == [
            f"http-request set-header X-Forwarded-For %[src] unless {{ src 127.0.0.0/8 ::1 {proxies} }}"
        ]
        assert text.index("frontend http_frontend") < text.index("X-Forwarded-For")


def test_serve_may_run_the_script() -> None:
    assert stat.S_IMODE(HAPROXY.stat().st_mode) & stat.S_IXUSR


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "RAY_SERVE_HAPROXY_BINARY_PATH": str(HAPROXY)}


class Replica(BaseHTTPRequestHandler):
    """Answers health checks and requests, the latter with the number of requests so far."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content = b"success"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def door(tmp_path: Path, servers: dict[str, int], **options: str) -> Iterator[str]:
    """Address of an HAProxy with these replicas of an application; options: of `write`."""
    port = free_port()
    configuration = write(tmp_path, servers, host="127.0.0.1", port=port, **options)
    with subprocess.Popen([str(HAPROXY), "-db", "-f", str(configuration)], env=_environment()) as process:
        try:
            until = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
                assert process.poll() is None, "HAProxy ended"
                assert time.monotonic() < until, "HAProxy does not listen"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def whole_answer(connection: socket.socket) -> bytes:
    """An answer of `Replica`, which comes in one piece or in two."""
    connection.settimeout(120)
    answer = b""
    while not answer.endswith(b"success"):
        piece = connection.recv(1_000)
        assert piece, answer
        answer += piece
    return answer


@pytest.mark.slow
def test_a_client_that_does_not_finish_its_headers_is_cut_off(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with door(tmp_path, {"replica": server.server_port}) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as slow, socket.create_connection(address) as kept:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
            kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert whole_answer(kept).startswith(b"HTTP/1.1 200")
            slow.settimeout(120)
            while slow.recv(1_000):  # an answer of 408, then the end
                pass
            kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # idle meanwhile, and still open
            assert whole_answer(kept).startswith(b"HTTP/1.1 200")
    server.shutdown()


def test_a_path_that_no_application_has_is_not_found_in_json(tmp_path: Path) -> None:
    with door(tmp_path, {"ended": free_port()}, prefix="/app") as url:
        answer = httpx.get(f"{url}/other", timeout=60)
    assert (answer.status_code, answer.json()) == (404, {"error": "nothing is served at this path"})
    once = (tmp_path / "haproxy.cfg").read_text()
    launch(tmp_path / "haproxy.cfg")
    assert (tmp_path / "haproxy.cfg").read_text() == once  # as after a reload that changed nothing


@pytest.fixture
def vanished() -> Iterator[int]:
    """Port of a listener whose queue is full: connections to it are never answered, as if its machine were gone."""
    with socket.socket() as listener, contextlib.ExitStack() as filling:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(4):
            filler = filling.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


def test_a_replica_on_a_machine_that_vanished_is_passed_over_within_seconds(
    tmp_path: Path, vanished: int
) -> None:
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    with door(tmp_path, {"gone": vanished, "here": replica.server_port}) as url:
        for _ in range(4):  # in turns, so that the vanished one is tried
            begun = time.monotonic()
            assert httpx.get(url, timeout=60).text == "success"
            assert time.monotonic() - begun < 10
    replica.shutdown()


def test_without_a_replica_the_answer_says_to_try_again(tmp_path: Path) -> None:
    with door(tmp_path, {"ended": free_port()}) as url:
        answer = httpx.get(url, timeout=60)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "try again" in answer.json()["error"]


class Ending(Replica):
    """Ends the connection of every request in place of an answer, as a replica that is killed."""

    def do_POST(self) -> None:
        self.close_connection = True


@pytest.fixture
def ending() -> Iterator[int]:
    """Port of a replica that is healthy and answers no request."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Ending) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_of_a_replica_that_ended_with_a_request_the_answer_says_that_it_may_have_been_carried_out(
    tmp_path: Path, ending: int
) -> None:
    with door(tmp_path, {"ending": ending}) as url:
        answer = httpx.post(url, content=b"{}", timeout=60)
    assert answer.status_code == 502
    assert "retry-after" not in answer.headers
    assert "is not known" in answer.json()["error"]


@pytest.mark.parametrize("is_there", [True, False])
def test_clients_of_language_models_read_in_their_shape_that_no_replica_answered(
    tmp_path: Path, ending: int, *, is_there: bool
) -> None:
    servers = {"replica": ending if is_there else free_port()}
    with door(tmp_path, servers, application="generative") as url:
        answer = httpx.post(url, content=b"{}", timeout=60)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, None)
    assert "again" in error["message"]
    once = (tmp_path / "haproxy.cfg").read_text()
    assert once.count("openai.http") == 3
    launch(tmp_path / "haproxy.cfg")
    assert (tmp_path / "haproxy.cfg").read_text() == once  # as after a reload that changed nothing


def test_while_no_route_is_known_the_answer_says_to_try_again(tmp_path: Path) -> None:
    with door(tmp_path, {}) as url:
        answer = httpx.get(f"{url}/v2/models/late", timeout=60)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_haproxy_leads_a_process_group_that_its_manager_is_not_in(tmp_path: Path) -> None:
    with door(tmp_path, {}):
        (pid,) = processes_of(str(tmp_path / "haproxy.cfg"))
        assert os.getpgid(pid) == pid


def test_connections_to_replicas_end_when_the_machine_acknowledges_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, {"replica": free_port()}, host="127.0.0.1")
    launch(file)
    once = file.read_text()
    assert re.search(r"^    server replica .* tcp-ut 1s$", once, re.MULTILINE)
    defaults = once[once.index("\ndefaults\n") : once.index("\nfrontend prometheus")]
    for line in ("option srvtcpka", "srvtcpka-idle 1s", "timeout check 30s", "timeout connect 1s"):
        assert defaults.count(f"    {line}\n") == 1
    launch(file)
    assert file.read_text() == once  # as after a reload that changed nothing


PROXY = ServerConfig("SERVE_PROXY_ACTOR-fallback-1", "127.0.0.1", 9)


def test_an_application_that_is_built_anew_keeps_the_replicas_that_are_well(tmp_path: Path) -> None:
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    ports = {"well": replica.server_port, "ended": free_port()}
    for servers, names in (
        (ports, ["well", "ended"]),
        ({}, ["well"]),  # as Serve writes it until the application is built
        ({}, ["well"]),  # and again, when another application is ready before
        ({"new": free_port()}, ["new"]),
    ):
        file = write(tmp_path, servers, fallback=PROXY)
        launch(file)
        assert _servers(file) == [*names, PROXY.name]
    replica.shutdown()
    launch(write(tmp_path, {}, fallback=PROXY))
    assert _servers(file) == [PROXY.name]  # scaled to none


def test_an_application_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    launch(write(tmp_path, {"well": replica.server_port}, fallback=PROXY))
    launch(write(tmp_path, {}))
    launch(file := write(tmp_path, {}, fallback=PROXY))
    assert _servers(file) == [PROXY.name]
    replica.shutdown()


def _servers(file: Path) -> list[str]:
    text = file.read_text()
    return re.findall(r"^    server (\S+) ", text[text.index("\nbackend ") :], re.MULTILINE)


WATCHED_EVERY_S = 2
MANAGER = "import subprocess, sys; subprocess.run(sys.argv[1:])"
NODE = f"{MANAGER}; sys.stdin.read()"


@pytest.mark.parametrize("killed", ["node", "manager"])
def test_it_ends_with_its_node_and_not_with_its_manager(tmp_path: Path, killed: str) -> None:
    port = free_port()
    configuration = write(tmp_path, {}, host="127.0.0.1", port=port)
    own = [str(HAPROXY), "-db", "-f", str(configuration)]
    start = [sys.executable, "-c", NODE, sys.executable, "-c", MANAGER, *own]
    with subprocess.Popen(start, env=_environment(), stdin=subprocess.PIPE) as node:
        try:
            until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            (haproxy,) = (pid for pid in processes_of(str(configuration)) if _stat(pid)[0] == "haproxy")
            manager = int(_stat(haproxy)[1])
            os.kill({"node": node.pid, "manager": manager}[killed], signal.SIGKILL)
            if killed == "node":
                until(lambda: not Path(f"/proc/{haproxy}").exists())
            else:
                until(lambda: int(_stat(haproxy)[1]) != manager)
                time.sleep(WATCHED_EVERY_S + 1)  # what never comes has no condition to wait for
                assert socket.socket().connect_ex(("127.0.0.1", port)) == 0
        finally:
            node.kill()
            for pid in processes_of(str(configuration)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> tuple[str, str]:
    """Name and parent of a process."""
    name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    return name, rest.split()[1]
