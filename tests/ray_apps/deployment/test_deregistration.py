"""How long an ending replica waits for the HAProxies that still send it requests; on Serve: test_haproxy_supervisor.py."""

from __future__ import annotations

import pytest

from toque.ray_apps.serve.deregistration import Deregistration


@pytest.fixture
def now() -> list[float]:
    return [100.0]


def wait_of(now: list[float]) -> Deregistration:
    return Deregistration(quiet_s=10.0, longest_s=60.0, clock=lambda: now[0])


def test_it_is_over_when_nobody_has_asked_for_a_while(now: list[float]) -> None:
    wait = wait_of(now)
    now[0] = 109.9
    assert not wait.is_over
    now[0] = 110.0
    assert wait.is_over
    assert not wait.is_given_up


def test_each_health_check_or_request_starts_the_quiet_time_anew(now: list[float]) -> None:
    wait = wait_of(now)
    for now[0] in (105.0, 114.0, 123.0):
        assert not wait.is_over
        wait.note_haproxy()
    now[0] = 132.9
    assert not wait.is_over
    now[0] = 133.0
    assert wait.is_over


def test_it_is_given_up_though_somebody_still_asks(now: list[float]) -> None:
    wait = wait_of(now)
    for now[0] in range(101, 160):
        wait.note_haproxy()
        assert not wait.is_over
    now[0] = 160.0
    wait.note_haproxy()
    assert wait.is_over
    assert wait.is_given_up
