"""Judgement of a champion by its last minutes: against its declared objectives, and against its own level of the hour before.

Pure. A limit is a multiple of what was usual an hour ago, never below a floor, so that neither a daily cycle nor three errors of
a quiet night page anybody; above it, the test is valid at every look.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from functions.live_counts import ArmTally, lower_edge_ms, quantile_ms, slower
from functions.rollout import Slo
from functions.stats import counted_quantile_p, rate_above_p

LEVEL = 1e-5  # chance that one test is wrong; one begins every minute
SPANS = (2, 10)  # windows that are judged together: the short span is quick, the long one sees what is rare
BASELINE_WINDOWS = 60  # before the longest span
_FLOORS = {
    "errors": 0.003,
    "missing": 0.003,
    "refused": 0.05,
}  # shares below which nothing is ever above its level
_TIMES = 2.0  # how far from its own level
_BURNING = 6.0  # how many times as fast as it lasts with an error budget must burn
_MIN_BASELINE = 300  # requests of the hour before, for a level to speak of
_MIN_ANSWERS = 50  # of the last minutes, for a quantile
_QUANTILES = (0.5, 0.95)


@dataclass(frozen=True, slots=True)
class ServiceFinding:
    """Finding on one subject of a champion. value, limit: shares of requests, or a ratio of latencies."""

    subject: str
    broken: bool
    text: str
    value: float
    limit: float


def judge_champion(
    recent: Sequence[ArmTally], before: ArmTally, slos: Sequence[Slo] = ()
) -> list[ServiceFinding]:
    """Judge what a champion's users got in the last minutes, each subject by the span that speaks most clearly.

    recent: of each of `SPANS`. before: of the champion's arm in the hour before them, whichever version it had. Without
    requests in either, what they are needed for is not judged, and not found broken.
    """
    found: dict[str, ServiceFinding] = {}
    for span in recent:
        for one in (*_objectives(span, slos), *_levels(span, before), *_latencies(span, before)):
            known = found.get(one.subject)
            if known is None or (one.broken, one.value) > (known.broken, known.value):
                found[one.subject] = one
    return list(found.values())


def _objectives(recent: ArmTally, slos: Sequence[Slo]) -> Iterator[ServiceFinding]:
    for slo in slos:
        if slo.slow_ms is None:
            bad, limit = len(recent.errors | recent.missing), min(_BURNING * (1 - slo.target), 0.5)
            what = "had no answer"
        else:
            fast = sum(
                int(count) for index, count in enumerate(recent.latency) if lower_edge_ms(index) < slo.slow_ms
            )
            bad, limit = int(recent.latency.sum()) - fast, min(_BURNING * (1 - slo.target), 0.5)
            what = f"took more than {slo.slow_ms:g} ms"
        asked = recent.requests if slo.slow_ms is None else int(recent.latency.sum())
        yield _share_finding(f"slo-{slo.name}", bad, asked, limit, what)


def _levels(recent: ArmTally, before: ArmTally) -> Iterator[ServiceFinding]:
    if before.requests < _MIN_BASELINE:
        return
    words = {
        "errors": "met an error",
        "missing": "got no usable answer",
        "refused": "did not fit the version",
    }
    for subject, floor in _FLOORS.items():
        usual = len(getattr(before, subject))
        upper = (usual + 3 * math.sqrt(usual)) / before.requests
        limit = min(max(floor, _TIMES * upper), 0.5)
        yield _share_finding(subject, len(getattr(recent, subject)), recent.requests, limit, words[subject])


def _latencies(recent: ArmTally, before: ArmTally) -> Iterator[ServiceFinding]:
    if before.requests < _MIN_BASELINE or int(recent.latency.sum()) < _MIN_ANSWERS:
        return
    slowed, worst = slower(before.latency, _TIMES), 1.0
    parts: list[str] = []
    ratio = 0.0
    for q in _QUANTILES:
        usual, now, allowed = (quantile_ms(each, q) for each in (before.latency, recent.latency, slowed))
        ratio = max(ratio, now / usual)
        parts.append(f"p{q * 100:.0f} {now:.3g} ms, {usual:.3g} ms in the hour before")
        if now > allowed:
            worst = min(worst, counted_quantile_p(slowed, recent.latency, q=q))
    text = f"latency: {'; '.join(parts)}; more than {_TIMES:g} times is not usual, p = {worst:.3g}"
    yield ServiceFinding("latency", worst <= LEVEL / len(SPANS) / len(_QUANTILES), text, ratio, _TIMES)


def _share_finding(subject: str, bad: int, asked: int, limit: float, what: str) -> ServiceFinding:
    share = bad / asked if asked else 0.0
    p = float(rate_above_p(bad, max(asked, bad), limit))
    text = f"{bad} of {asked} requests of the last minutes {what} ({share:.2%}); more than {limit:.2%} is not usual, p = {p:.3g}"
    return ServiceFinding(subject, p <= LEVEL / len(SPANS), text, share, limit)
