"""Tail sampling: which requests a process keeps."""

from __future__ import annotations

import os

import pytest
from prometheus_client import REGISTRY

from toque.clusters.telemetry.tracing import Keeper, TraceContext, TraceSettings, new_span_id

LOW, HIGH = "f" * 18 + "0" * 14, "0" * 18 + "f" * 14  # below and above any share


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keeper(clock: Clock) -> Keeper:
    return Keeper(0.1, 0.5, kept_per_s=10, clock=clock)


def decided(keeper: Keeper, trace_id: str = HIGH, **said: object) -> object:
    told = {"by_caller": False, "failed": False, "duration_s": 0.01} | said
    return keeper.decide(trace_id, **told)  # type: ignore[arg-type]


def test_failed_and_slow_requests_are_kept_and_so_is_what_the_caller_keeps(keeper: Keeper) -> None:
    assert decided(keeper) is None
    assert decided(keeper, failed=True) == "failed"
    assert decided(keeper, duration_s=0.5) == "slow"
    assert decided(keeper, by_caller=True) == "caller"
    assert decided(keeper, LOW) == "sampled"


def test_the_share_is_one_of_traces_and_the_same_in_every_process(clock: Clock) -> None:
    ids = [os.urandom(16).hex() for _ in range(20_000)]
    one, other = (Keeper(0.1, 0.5, kept_per_s=1e9, clock=clock) for _ in range(2))
    kept = [each for each in ids if decided(one, each)]
    assert kept == [each for each in ids if decided(other, each)]
    assert 1_800 < len(kept) < 2_200  # 2000 expected, 42 the standard deviation


def counted(kept: str) -> float:
    return REGISTRY.get_sample_value("toque_traced_requests_total", {"kept": kept}) or 0.0


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (1.0, 3)])
def test_none_and_all_are_shares_too(share: float, kept: int, clock: Clock) -> None:
    keeper = Keeper(share, 0.5, clock=clock)
    assert sum(decided(keeper, each) is not None for each in (LOW, HIGH, "1" * 32)) == kept


def test_a_storm_of_failures_is_bounded_and_counted(keeper: Keeper, clock: Clock) -> None:
    before = counted("dropped"), counted("failed")
    assert sum(decided(keeper, failed=True) is not None for _ in range(1_000)) == 20
    assert (counted("dropped"), counted("failed")) == (before[0] + 980, before[1] + 20)
    clock.now = 1.0
    assert sum(decided(keeper, failed=True) is not None for _ in range(1_000)) == 10
    clock.now = 100.0
    assert sum(decided(keeper, failed=True) is not None for _ in range(1_000)) == 20


@pytest.mark.parametrize(
    "header",
    [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-what-comes-later",
    ],
)
def test_a_traceparent_is_read(header: str | bytes) -> None:
    found = TraceContext.parse(header)
    assert found is not None
    assert (found.trace_id, found.span_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert found.sampled == (str(header)[-4:].strip("'")[-2:] != "00")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319ł-b7ad6b7169203331-01",
    ],
)
def test_a_malformed_traceparent_is_ignored(header: str | None) -> None:
    assert TraceContext.parse(header) is None


def test_a_position_is_written_as_it_is_read() -> None:
    context = TraceContext("0af7651916cd43dd8448eb211c80319c", new_span_id(), True)
    assert TraceContext.parse(str(context)) == context


def test_without_an_endpoint_and_a_share_there_is_no_tracing() -> None:
    assert TraceSettings.of({"TOQUE_TRACE_SLOW_MS": "10"}) is None
    assert TraceSettings.of({"TOQUE_TRACE_SHARE": "0"}) == TraceSettings(share=0.0)
    found = TraceSettings.of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "TOQUE_TRACE_SLOW_MS": "20"})
    assert found == TraceSettings(0.01, 0.02, "http://c:4318")


def test_headers_come_from_a_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    file = Path(str(tmp_path), "headers")
    file.write_text("API-Key=k%3D1\nx-team = kitchen\n")
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c", "TOQUE_TRACE_HEADERS_FILE": str(file)}
    found = TraceSettings.of(variables)
    assert found is not None
    assert found.headers == (("api-key", "k=1"), ("x-team", "kitchen"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("TOQUE_TRACE_SHARE", "2"),
        ("TOQUE_TRACE_SHARE", "many"),
        ("TOQUE_TRACE_SLOW_MS", "slow"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        TraceSettings.of({"TOQUE_TRACE_SHARE": "1"} | {name: value})
