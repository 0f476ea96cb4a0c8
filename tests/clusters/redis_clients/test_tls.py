"""TLS with a private authority and client certificates, and a user who may do what the platform needs and no more."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.clusters.redis_clients.certificates import Authority
from tests.clusters.redis_clients.servers import ACL, PASSWORD, USER, Server, wait_for
from tests.conditions.servers import oldest_redis, redis_on_path
from tests.ports import free_port
from toque.clusters.redis_clients import open_redis, open_redis_async, redis_url_of

PROGRAM = redis_on_path() or oldest_redis()  # that of the wheel was built without TLS


def knows_tls() -> bool:
    tried = subprocess.run(
        [PROGRAM, "--tls-port", "0", "--port", "0", "--bogus", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "tls-port" not in tried.stdout + tried.stderr


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls_lines(authority: Authority) -> list[str]:
    """Configuration of a server that speaks TLS only, beside its port."""
    if not knows_tls():
        pytest.skip(f"{PROGRAM} was built without TLS; put a redis-server with TLS on PATH")
    certificate, key = authority.sign("server")
    files = [f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {authority.file}"]
    return ["port 0", *files, "tls-replication yes", "tls-auth-clients no"]


@pytest.fixture(scope="module")
def tls_url(
    authority: Authority, tls_lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Url of a server that wants a client's certificate and knows one user, without user and password."""
    port = free_port()
    lines = [*tls_lines, f"tls-port {port}", "tls-auth-clients yes", "user default off", ACL]
    server = Server(tmp_path_factory.mktemp("tls"), lines, program=PROGRAM).start()
    client_certificate, client_key = authority.sign("client")
    files = f"ssl_ca_certs={authority.file}&ssl_certfile={client_certificate}&ssl_keyfile={client_key}"
    yield f"rediss://{{user}}127.0.0.1:{port}/0?{files}"
    server.kill()


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_sentinels_and_clusters_are_reached_by_tls(
    kind: str, authority: Authority, tls_lines: list[str], tmp_path: Path
) -> None:
    ports = free_port(below=22_768), free_port()
    own = [*tls_lines, "requirepass secret", f"tls-port {ports[0]}"]
    if kind == "cluster":
        own += ["cluster-enabled yes", "tls-cluster yes", "cluster-announce-ip 127.0.0.1"]
    servers = [Server(tmp_path, own, program=PROGRAM).start()]
    if kind == "sentinel":
        watch = [f"sentinel monitor rows 127.0.0.1 {ports[0]} 1", "sentinel auth-pass rows secret"]
        lines = [*tls_lines, f"tls-port {ports[1]}", *watch]
        servers.append(Server(tmp_path, lines, sentinel=True, program=PROGRAM).start())
        url = f"rediss+sentinel://:secret@127.0.0.1:{ports[1]}?service=rows&sentinel_auth=none"
    else:
        url = f"rediss+cluster://:secret@127.0.0.1:{ports[0]}?"
        with open_redis(f"rediss://:secret@127.0.0.1:{ports[0]}?ssl_ca_certs={authority.file}") as node:
            wait_for(node.ping, "the node answers")
            node.execute_command("CLUSTER ADDSLOTS", *range(16_384))

    async def read() -> object:
        client = open_redis_async(f"{url}&ssl_ca_certs={authority.file}", patience_s=20.0)
        try:
            return await client.get("toque:x")
        finally:
            await client.aclose()

    try:
        with open_redis(f"{url}&ssl_ca_certs={authority.file}", patience_s=20.0) as client:
            assert client.set("toque:x", 1)
        assert asyncio.run(read()) == b"1"
    finally:
        for server in servers:
            server.kill()


def as_user(url: str, password: str = PASSWORD) -> str:
    return url.replace("{user}", f"{USER}:{quote(password, safe='')}@")


def test_a_user_with_a_certificate_reads_and_writes(tls_url: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    environment = {
        "TOQUE_REDIS_URL": tls_url.replace("{user}", f"{USER}@"),
        "TOQUE_REDIS_PASSWORD_FILE": str(tmp_path / "password"),
    }
    url = redis_url_of(environment)
    assert url == as_user(tls_url)
    with open_redis(url, patience_s=20.0) as client:
        wait_for(client.ping, "the server answers")
        assert client.set("toque:x", 1)
        with pytest.raises(NoPermissionError):
            client.get("others:x")
        with pytest.raises(NoPermissionError):
            client.flushall()

    async def read() -> object:
        client = open_redis_async(url, patience_s=20.0)
        try:
            return await client.get("toque:x")
        finally:
            await client.aclose()

    assert asyncio.run(read()) == b"1"


def test_an_authority_that_did_not_sign_the_server_is_refused_at_once(
    tls_url: str, authority: Authority, tmp_path: Path
) -> None:
    another = Authority(tmp_path)
    url = as_user(tls_url).replace(str(authority.file), str(another.file))
    begun = time.monotonic()
    with (
        open_redis(url, patience_s=60.0) as client,
        pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.ping()
    assert time.monotonic() - begun < 20


def test_a_client_without_certificate_or_with_a_wrong_password_is_refused(tls_url: str) -> None:
    bare, _, query = as_user(tls_url).partition("&")
    assert query
    with open_redis(bare, patience_s=0.1) as client, pytest.raises(RedisConnectionError):
        client.ping()
    with open_redis(as_user(tls_url, "wrong"), patience_s=60.0) as client, pytest.raises(AuthenticationError):
        client.ping()
