import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ray_apps.local import processes, redis_server
from ray_apps.local.processes import ProcessSession
from ray_apps.local.settings import Settings
from tests.ports import free_port


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
