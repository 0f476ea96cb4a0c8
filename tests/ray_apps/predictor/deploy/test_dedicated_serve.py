"""Versions in deployments of their own behind Serve and HAProxy: split, promoted, broken, killed, dropped, asleep, removed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.ray_apps.predictor.test_serve import Callers, Platform, _replicas, _status
from tests.redis_server import RedisServer
from tests.waiting import until
from toque.functions.runtime.changes import Announcer
from toque.ray_apps.serve.settings import loopback_environment
from toque.registry import Access, Registry, open_store

pytestmark = [pytest.mark.ray, pytest.mark.proof, pytest.mark.timeout(1200)]

WITHIN_S = 180
OPTIONS = ["--dedicated", "one", "--replicas", "2", "--linger-s", "10", "--idle-s", "10"]
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}]}
LOOK = """
import json, sys, ray
from ray import serve
ray.init(address=sys.argv[1], log_to_driver=False)
for name in sys.argv[2:]:
    serve.delete(name, _blocking=False)  # it may be there again before who waits has seen it gone
print(json.dumps({name: one.status.value for name, one in serve.status().applications.items()}))
"""


@pytest.fixture
def platform(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Platform]:
    """The model `one` with one version behind two endpoint replicas, and Redis; the parameter is how versions are scaled."""
    redis = RedisServer(tmp_path)
    redis.start()
    store = open_store(f"file://{tmp_path}/store", announce=Announcer(redis.url))
    token = Access(store, actor="ada").create_token("test", "predictor")
    registry = Registry(store, actor="ada")
    made = Platform(tmp_path, free_port(), 0, registry, token, redis.url)
    registry.create_model("one")
    registry.promote("one", made.version("one", 1.0))
    environment = os.environ | {"TOQUE_STORE": store.url, "TOQUE_REDIS_URL": redis.url}
    program = [sys.executable, "-m", "toque.ray_apps.predictor", "--port", str(made.port)]
    command = [*program, *OPTIONS, *request.param]
    with (tmp_path / "log").open("wb") as log:
        made.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        until(lambda: b"\nready\n" in log_of(made) or made.process.poll() is not None, within_s=300)  # type: ignore[union-attr]
        assert made.process.poll() is None, log_of(made)[-3000:].decode()
        yield made
    finally:
        made.process.send_signal(signal.SIGTERM)
        made.process.wait(120)
        redis.kill()


def log_of(place: Platform) -> bytes:
    return (place.folder / "log").read_bytes()


def versions(number: int | str = "") -> list[int]:
    """The replicas of a version, or of all."""
    return _replicas(f"version-one@{number}")


def applications(place: Platform, *deleted: str) -> dict[str, str]:
    """The Serve applications of the platform and their states, after some were deleted by hand."""
    assert place.process is not None
    (address,) = {
        found[1].decode()
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and (found := _gcs_of_child(folder, place.process.pid)) is not None
    }
    looked = subprocess.run(
        [sys.executable, "-c", LOOK, address, *deleted],
        env=os.environ | loopback_environment() | {"RAY_AUTH_MODE": "token"},  # as that Ray has them
        check=False, capture_output=True, text=True, timeout=WITHIN_S,
    )  # fmt: skip
    assert looked.returncode == 0, looked.stderr[-3000:]
    told: dict[str, str] = json.loads(looked.stdout.splitlines()[-1])
    return told


def _gcs_of_child(folder: Path, parent: int) -> re.Match[bytes] | None:
    try:
        if f"\nPPid:\t{parent}\n" not in (folder / "status").read_text():
            return None
        return re.search(rb"--gcs-address=([0-9.:]+)", (folder / "cmdline").read_bytes())
    except OSError:
        return None


def ask(place: Platform, unit: str, **parameters: Any) -> httpx.Response:
    url = f"http://127.0.0.1:{place.port}/v2/models/one/infer"
    body = BODY | {"parameters": {"unit": unit, **parameters}}
    return httpx.post(url, json=body, headers=place.headers, timeout=WITHIN_S)


@pytest.mark.parametrize("platform", [[]], indirect=True)
def test_no_request_is_lost_to_what_changes_and_what_is_dropped_goes(platform: Platform):
    with Callers(platform).running() as callers:
        until(lambda: len(callers.answers) > 20)
        _split(platform, callers)
        _promote_and_roll_back(platform, callers)
        _broken(platform, callers)
        _killed(callers)
        _new_code(platform, callers)
    assert callers.failures == []
    _gone_by_hand(platform)
    applications(platform, "predictor-one")  # the model is served no more
    until(lambda: not versions(), within_s=WITHIN_S)
    until(lambda: not any("@" in name for name in applications(platform)), within_s=WITHIN_S)


def _answers_of(callers: Callers, number: int, *, after: int) -> bool:
    return str(number) in {version for _, version in callers.answers[after:]}


def _split(place: Platform, callers: Callers) -> None:
    second = place.version("one", 2.0)
    place.registry.set_traffic("one", {"canary": (second, 0.5)})
    until(lambda: _answers_of(callers, second, after=0), within_s=WITHIN_S)
    seen = len(callers.answers)
    until(lambda: _answers_of(callers, 1, after=seen) and _answers_of(callers, second, after=seen))
    assert (len(versions(1)), len(versions(second))) == (
        1,
        1,
    )  # two endpoint replicas, and each version runs once
    until(lambda: _as_assigned(place), within_s=WITHIN_S)  # by both endpoint replicas


def _as_assigned(place: Platform) -> bool:
    traffic = place.registry.traffic("one")
    units = [f"u{i}" for i in range(20)]
    answers = [ask(place, unit).json() for unit in units]
    for answer in answers:
        assert answer["outputs"][0]["data"] == [3.0 * int(answer["model_version"])]
    return [answer["model_version"] for answer in answers] == [
        str(traffic.assign(unit).version) for unit in units
    ]


def _promote_and_roll_back(place: Platform, callers: Callers) -> None:
    for number in (2, place.version("one", 3.0), place.version("one", 4.0)):
        place.registry.promote("one", number)
        until(lambda number=number: _all_now(callers, number), within_s=WITHIN_S)
    place.registry.rollback("one", "champion")
    until(lambda: _all_now(callers, 3), within_s=WITHIN_S)
    until(lambda: not versions(1), within_s=WITHIN_S)  # dropped, and not what a rollback would want
    assert len(versions(3)) == 1


def _all_now(callers: Callers, number: int) -> bool:
    return {version for _, version in callers.answers[-20:]} == {str(number)}


def _broken(place: Platform, callers: Callers) -> None:
    broken = place.version("one", 0.0, broken=True)
    place.registry.promote("one", broken)
    reason = "not a program of torch.export"
    until(lambda: reason in _status(place)["failures"].get(str(broken), ""), within_s=WITHIN_S)
    seen = len(callers.answers)
    until(lambda: len(callers.answers) > seen + 50)
    assert not _answers_of(callers, broken, after=0)
    place.registry.rollback("one", "champion")


def _killed(callers: Callers) -> None:
    (replica,) = versions(3)
    os.kill(replica, signal.SIGKILL)
    until(lambda: versions(3) not in ([], [replica]), within_s=WITHIN_S)
    seen = len(callers.answers)
    until(lambda: len(callers.answers) > seen + 50, within_s=WITHIN_S)


def _new_code(place: Platform, callers: Callers) -> None:
    """A deploy of the endpoint takes the versions along, each answering until its next replica does."""
    before = set(versions(3))
    assert place.process is not None
    place.process.send_signal(signal.SIGHUP)
    until(lambda: b"\ndeployed\n" in log_of(place), within_s=300)
    until(lambda: versions(3) and not before & set(versions(3)), within_s=WITHIN_S)
    seen = len(callers.answers)
    until(lambda: len(callers.answers) > seen + 50, within_s=WITHIN_S)


def _gone_by_hand(place: Platform) -> None:
    """A version whose application was deleted by hand is deployed again while an endpoint holds it."""
    before = set(versions(3))
    applications(place, "version-one@3")
    answer = ask(place, "u")
    until(lambda: len(versions(3)) == 1 and not before & set(versions(3)), within_s=WITHIN_S)
    assert answer.status_code in {200, 503}, answer.text
    until(lambda: ask(place, "u").status_code == 200, within_s=WITHIN_S)


@pytest.mark.parametrize(
    "platform", [["--replicas", "1", "--min-replicas", "0", "--max-replicas", "1"]], indirect=True
)
def test_versions_go_to_zero_and_come_back_without_a_failed_request(platform: Platform):
    second = platform.version("one", 2.0)
    platform.registry.set_traffic("one", {"canary": (second, 0.5)})
    until(lambda: _status(platform)["loaded"] == [1, second], within_s=WITHIN_S)
    for _ in range(2):
        until(lambda: not versions(), within_s=WITHIN_S)
        assert ask(platform, "u", timeout=50_000).status_code == 504  # a deadline does not wait for a start
        begin = time.monotonic()
        with ThreadPoolExecutor(8) as threads:
            answers: list[Any] = list(threads.map(lambda i: ask(platform, f"u{i}"), range(8)))
        sys.stdout.write(f"first answers after zero: {time.monotonic() - begin:.1f} s\n")
        assert [answer.status_code for answer in answers] == [200] * 8, answers[0].text
        assert {answer.json()["model_version"] for answer in answers} == {"1", str(second)}
