"""Judgement of a champion by its last minutes: against its declared objectives, and against its own level of the hour before.

Pure. A limit is a multiple of what was usual an hour ago, never below a floor, so that neither a daily cycle nor three errors of
a quiet night page anybody; above it, the test is valid at every look. Rates are requests by requests. One caller that is broken is
is no outage: against its own level, the unit that met most failures counts once, unless a quarter of all requests fail.

An outage of a champion whose usual is unknown takes ten failing requests and half of all. Where a tenth of its requests fail by
chance, that comes to at most one false alarm a year at any pace; where a twentieth do, to none in ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toque.functions.live_counts import ArmTally, Failures, lower_edge_ms, quantile_ms, slower
from toque.functions.rollout import Slo
from toque.functions.stats import counted_quantile_p, rate_above_p

LEVEL = 1e-5  # chance that one test is wrong; one begins every minute
SPANS = (2, 10)  # windows that are judged together: the short span is quick, the long one sees what is rare
QUIET_SPANS = (
    30,
    110,
)  # windows over which outages of a champion of few requests are found; Redis keeps two hours
BASELINE_WINDOWS = 60  # before the longest of `SPANS`
_FLOORS = {
    "errors": 0.003,
    "missing": 0.003,
    "refused": 0.05,
}  # shares below which nothing is ever above its level
_TIMES = 2.0  # how far from its own level
_BURNING = 6.0  # how many times as fast as it lasts with an error budget must burn
_OUTAGE = 0.25  # share of failing requests that needs no second unit
_OUTAGE_UNSEEN = 0.5  # the same, where nobody knows what was usual
_OUTAGE_AT_MOST = 0.9
_MIN_OUTAGE = 10  # failing requests
_UNSEEN = {"errors": "met an error", "missing": "got no usable answer"}  # judged without an hour before, too
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
    whole: float | None = None

    @property
    def level(self) -> float:
        """The value that must be back within an alarm's limit for it to end: of all requests, whoever's they are."""
        return self.value if self.whole is None else self.whole


def is_quiet(recent: Sequence[ArmTally], before: ArmTally) -> bool:
    """Whether a champion fails at so few requests that `QUIET_SPANS` are needed to tell an outage."""
    failing = any(_fails_by_half(getattr(recent[-1], subject), recent[-1]) for subject in _UNSEEN)
    return failing and before.requests < _MIN_BASELINE


def judge_champion(
    recent: Sequence[ArmTally], before: ArmTally, slos: Sequence[Slo] = (), quiet: Sequence[ArmTally] = ()
) -> list[ServiceFinding]:
    """Judge what a champion's users got in the last minutes, each subject by the span that speaks most clearly.

    recent: of each of `SPANS`. before: of the champion's arm in the hour before them, whichever version it had. Without
    requests in either, what they are needed for is not judged, and not found broken. quiet: of each of `QUIET_SPANS`, where
    `is_quiet`.
    """
    found: dict[str, ServiceFinding] = {}
    findings = [
        one
        for span in recent
        for one in (*_objectives(span, slos), *_levels(span, before), *_latencies(span, before))
    ]
    for one in (*findings, *_quiet_outages(recent[-1], quiet)):
        known = found.get(one.subject)
        if known is None or (one.broken, one.value) > (known.broken, known.value):
            found[one.subject] = one
    return list(found.values())


def _quiet_outages(last: ArmTally, quiet: Sequence[ArmTally]) -> Iterator[ServiceFinding]:
    """Find outages over spans that hold enough requests; only while the last minutes fail, so that one that is over ends."""
    for minutes, span in zip(QUIET_SPANS, quiet, strict=False):
        for subject, what in _UNSEEN.items():
            failures = getattr(span, subject)
            outage = _fails_by_half(failures, span) and _fails_by_half(getattr(last, subject), last)
            if outage and failures.requests >= _MIN_OUTAGE:
                counts = (failures.requests, span.requests)
                yield _share_finding(subject, counts, counts, _OUTAGE_UNSEEN, 0.0, what, minutes=minutes)


def _fails_by_half(failures: Failures, span: ArmTally) -> bool:
    return failures.requests > 0 and failures.requests >= _OUTAGE_UNSEEN * span.requests


def _objectives(recent: ArmTally, slos: Sequence[Slo]) -> Iterator[ServiceFinding]:
    for slo in slos:
        limit = min(_BURNING * (1 - slo.target), 0.5)
        if slo.slow_ms is None:
            bad, asked = recent.errors.requests + recent.missing.requests, recent.requests
            what = "had no answer"
        else:
            fast = sum(
                int(count) for index, count in enumerate(recent.latency) if lower_edge_ms(index) < slo.slow_ms
            )
            asked = int(recent.latency.sum())
            bad, what = asked - fast, f"took more than {slo.slow_ms:g} ms"
        p = _above_p(bad, asked, limit)
        yield _share_finding(f"slo-{slo.name}", (bad, asked), (bad, asked), limit, p, what)


def _levels(recent: ArmTally, before: ArmTally) -> Iterator[ServiceFinding]:
    for subject, what in {**_UNSEEN, "refused": "did not fit the version"}.items():
        failures, usual = getattr(recent, subject), getattr(before, subject)
        outage = _outage(failures, recent.requests, usual, before.requests, what, subject)
        if outage is not None:
            yield outage
        elif before.requests >= _MIN_BASELINE:
            yield _level(failures, recent.requests, usual, before.requests, what, subject)
        elif subject in _UNSEEN and recent.requests:
            counts = (failures.requests, recent.requests)
            yield _share_finding(subject, counts, counts, _OUTAGE_UNSEEN, 1.0, what)


def _outage(
    failures: Failures, requests: int, usual: Failures, before: int, what: str, subject: str
) -> ServiceFinding | None:
    """Find requests that fail on such a scale that it does not matter whose they are; None where they do not."""
    limit = _OUTAGE_UNSEEN
    if before >= _MIN_BASELINE:
        limit = min(max(_OUTAGE, _TIMES * usual.requests / before), _OUTAGE_AT_MOST)
    elif subject == "refused":
        return None  # of a model that nobody used yet: its first caller is trying
    if failures.requests < max(_MIN_OUTAGE, limit * requests):
        return None
    counts = (failures.requests, requests)
    return _share_finding(subject, counts, counts, limit, 0.0, what)


def _level(
    failures: Failures, requests: int, usual: Failures, before: int, what: str, subject: str
) -> ServiceFinding:
    """Hold the requests that failed against twice the level of the hour before; of either, the worst unit counts once."""
    once = usual.requests - usual.repeats
    upper = (once + 3 * math.sqrt(once)) / (before - usual.repeats)
    limit = min(max(_FLOORS[subject], _TIMES * upper), 0.5)
    judged = (failures.requests - failures.repeats, requests - failures.repeats)
    p = _above_p(*judged, limit)
    return _share_finding(subject, (failures.requests, requests), judged, limit, p, what)


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


def _above_p(bad: int, asked: int, limit: float) -> float:
    return float(rate_above_p(bad, max(asked, bad), limit))


def _share_finding(
    subject: str,
    counts: tuple[int, int],
    judged: tuple[int, int],
    limit: float,
    p: float,
    what: str,
    *,
    minutes: int | None = None,
) -> ServiceFinding:
    """Describe how a share compares with its limit. counts: bad ones and all, for the reader; judged: those that the limit was held against."""
    (bad, asked), (events, trials) = counts, judged
    share = events / trials if trials else 0.0
    repeats = f", {bad - events} of them one unit's repeats" if bad > events else ""
    last = "minutes" if minutes is None else f"{minutes} minutes"
    text = (
        f"{bad} of {asked} requests of the last {last} {what}{repeats} ({share:.2%}); more than {limit:.2%} is not usual, "
        f"p = {p:.3g}"
    )
    return ServiceFinding(subject, p <= LEVEL / len(SPANS), text, share, limit, bad / asked if asked else 0.0)
