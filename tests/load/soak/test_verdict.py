"""Verdict of a soak on histories whose truth is known."""

import numpy as np
import pytest

from toque.load.soak.verdict import Held, Sample, growths, memory_by_role, role_of, unexcused


def history(
    *, minutes: float, leak_mib_a_minute: float = 0.0, keys_a_minute: float = 0.0, killed_at: float = 0.0
) -> list[Sample]:
    """Samples each five seconds of two processes of 200 MiB that fill up in the first minutes; one may leak, one may begin anew."""
    rng, samples = np.random.default_rng(4), []
    for at in np.arange(0, minutes * 60 + 1, 5.0):
        filled = 200 * (1 - 0.5 * np.exp(-at / 120))
        first = filled + leak_mib_a_minute * at / 60 + rng.normal(0, 1)
        reborn = killed_at and at >= killed_at * 60
        second = 100.0 + rng.normal(0, 1) if reborn else filled
        held = {
            1: Held("predictor-mlp", int(first * 2**20), 50 + int(rng.integers(3))),
            3 if reborn else 2: Held("predictor-mlp", int(second * 2**20), 50),
        }
        samples.append(Sample(float(at), 40, int(1000 + keys_a_minute * at / 60), held))
    return samples


def judged(samples: list[Sample]) -> dict[str, bool | None]:
    return {each.what: each.judged for each in growths(samples)}


def test_nothing_that_stays_is_said_to_grow_and_a_process_that_begins_anew_is_no_growth():
    flat = {"memory, MiB": True, "descriptors": True, "files": True, "keys in Redis": True}
    assert judged(history(minutes=60)) == flat
    assert judged(history(minutes=60, killed_at=20)) == flat
    assert judged(history(minutes=60, killed_at=45)) == flat


def test_a_leak_of_a_tenth_of_a_mib_a_minute_is_seen_in_an_hour():
    # 50 judged minutes: 15 MiB of 400 are 3.75 %, above the 2 % that are allowed.
    assert judged(history(minutes=60, leak_mib_a_minute=0.3))["memory, MiB"] is False
    assert judged(history(minutes=60, leak_mib_a_minute=0.05))["memory, MiB"] is True
    assert judged(history(minutes=60, keys_a_minute=1))["keys in Redis"] is False


def test_a_short_soak_says_nothing_of_memory():
    short = judged(history(minutes=5, leak_mib_a_minute=10, keys_a_minute=20))
    assert short["memory, MiB"] is None
    assert short["keys in Redis"] is False
    assert short["files"] is True


def test_a_failure_is_excused_only_if_it_was_in_flight_at_a_kill():
    def line(sent: float, ended: float, problem: str | None = "the connection ended") -> dict[str, object]:
        return {"sent": sent, "ended": ended, "problem": problem}

    kills = [(100.0, 100.1), (200.0, 200.1)]
    inside, after, between, fine = (
        line(99.9, 100.1),
        line(100.2, 100.3),
        line(150, 151),
        line(99.9, 100.1, None),
    )
    dying = line(100.05, 100.3)
    assert unexcused([inside, dying, after, between, fine], kills) == [after, between]


def test_memory_is_told_by_role():
    found = memory_by_role(history(minutes=60))
    assert found["predictor-mlp"][1] == pytest.approx(400, rel=0.02)


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray::ServeReplica:predictor-mlp:predict-mlp ", "predictor-mlp"),
        ("/x/bin/haproxy -f a", "haproxy"),
        ("/x/redis-server 127.0.0.1:1", "redis-server"),
        ("ray::IDLE", "ray worker"),
        ("/x/python -m a", "other"),
    ],
)
def test_a_process_is_known_by_its_command(command: str, role: str):
    assert role_of(command) == role
