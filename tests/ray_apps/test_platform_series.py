"""Gauges of the platform's state that the leading ticker publishes: features, log, tokens, quotas, certificates, Redis."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.redis_server import RedisServer, running_redis
from toque.featurestore import Entity, FeatureView, Field, Float64
from toque.functions import Context, use_context
from toque.functions.features.jobs import record_feature_health
from toque.functions.maintenance.backup import back_up, last_backup, restore
from toque.functions.monitoring.language.scores import LiveScore, keep_means
from toque.functions.prediction_log import LogWriter, losses_of
from toque.functions.prediction_log.writing.lost_writers import Loss
from toque.functions.quotas import set_quota
from toque.functions.runtime.durable.ledger import DeadLetters
from toque.ray_apps.platform_series import Lag, PlatformSeries
from toque.ray_apps.published import FAMILIES
from toque.registry import Access, Grant, RegistryError, Role, open_store

NOW = datetime(2013, 6, 2, tzinfo=UTC)
view = FeatureView("weather", [Entity("origin")], [Field("temp", Float64), Field("rain", Float64)])
Found = dict[tuple[str, ...], float]


def measured(context: Context) -> Found:
    """Samples by name and the values of labels, in their order."""
    access = Access(context.store, actor="admin")
    families = PlatformSeries(context, access, context.in_workspace).measure()
    assert {each.name for each in families} <= set(FAMILIES)
    return {
        (sample.name, *(sample.labels[name] for name in FAMILIES[family.name].labels)): sample.value
        for family in families
        for sample in family.samples
    }


def _an_hour_later() -> datetime:
    return NOW + timedelta(hours=1)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    url = f"file://{tmp_path}/store"
    return Context(open_store(url), url, clock=lambda: NOW)


def test_views_are_gauges_while_their_measurement_is_recent(context: Context) -> None:
    with use_context(context):
        context.features().apply([view])
        at = NOW - timedelta(hours=2)
        rows = [{"origin": f"A{n}", "temp": 1.0, "rain": None, "event_timestamp": at} for n in range(3)]
        context.features().write_offline(view, [*rows, rows[0] | {"rain": 2.0}])
        record_feature_health()
    found = {key: value for key, value in measured(context).items() if key[0].startswith("toque_feature")}
    there = ("default", "weather")
    assert found == {
        ("toque_feature_rows", *there): 4.0,
        ("toque_feature_freshness_seconds", *there): 7200.0,
        ("toque_feature_recent_rows", *there): 4.0,
        ("toque_feature_fill_ratio", *there, "temp"): 1.0,
        ("toque_feature_fill_ratio", *there, "rain"): 0.25,
        ("toque_feature_measurement_age_seconds", *there): 0.0,
    }
    later = measured(replace(context, clock=_an_hour_later))
    assert later["toque_feature_freshness_seconds", *there] == 10800.0
    assert later["toque_feature_measurement_age_seconds", *there] == 3600.0


def test_a_part_that_cannot_be_read_is_named_and_the_others_stay(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise RegistryError("the store does not answer")

    monkeypatch.setattr("toque.ray_apps.platform_series.latest_feature_health", away)
    found = measured(context)
    assert found["toque_platform_readable", "features of default"] == 0.0
    assert found["toque_platform_readable", "functions of default"] == 1.0
    assert found["toque_dead_letters", "default"] == 0.0


def test_losses_dead_letters_and_quotas_are_gauges(context: Context) -> None:
    loss = Loss(
        kind="predictions", writer="w", node="n", last_alive=datetime(2026, 1, 1, tzinfo=UTC), requests_at_most=7
    )  # fmt: skip
    for body in (loss, loss.model_copy(update={"writer": "v"}), loss.model_copy(update={"back": True})):
        losses_of(context).transact(lambda _, body=body: body.model_dump(mode="json"))
    DeadLetters(context.store, actor="x").add("some-run")
    with use_context(context):
        set_quota("fraud", cpus=8)
    found = measured(context)
    assert [
        found[f"toque_log_{name}", "default"]
        for name in ("writers_lost", "writers_missing", "requests_lost_at_most")
    ] == [2, 1, 7]
    assert found["toque_dead_letters", "default"] == 1.0
    assert found["toque_quota_limit", "default", "fraud", "cpus"] == 8.0
    assert found["toque_quota_used", "default", "fraud", "cpus"] == 0.0
    assert ("toque_quota_limit", "default", "fraud", "gpus") not in found


def test_the_means_of_scores_are_gauges_with_their_intervals(context: Context) -> None:
    times = {"since": NOW - timedelta(hours=1), "until": NOW}
    of = {"scorer": "json", "answers": 7, "mean": 0.75, "lower": 0.5, "upper": 0.9} | times
    keep_means(context.store, "support", [LiveScore(version=2, arm="canary", **of)])
    found = {key: value for key, value in measured(context).items() if key[0].startswith("toque_live")}
    names = ("default", "support", "2", "canary", "json")
    assert found == {
        ("toque_live_score_mean", *names): 0.75,
        ("toque_live_score_lower", *names): 0.5,
        ("toque_live_score_upper", *names): 0.9,
        ("toque_live_score_answers", *names): 7.0,
    }


def test_a_name_expires_with_its_last_token(context: Context) -> None:
    grants = [Grant(role=Role.viewer, workspace="default")]
    now = datetime.now(UTC)
    earlier = Access(context.store, actor="admin", clock=lambda: now - timedelta(days=9))
    earlier.create_token("ci", grants=grants, expires_at=now - timedelta(days=2))
    earlier.create_token("gone", grants=grants, expires_at=now - timedelta(days=8))
    access = Access(context.store, actor="admin")
    access.create_token("ci", grants=grants, expires_at=now + timedelta(days=30))
    access.create_token("forever", grants=grants, expires_at="never")
    found = {key: value for key, value in measured(context).items() if key[0].startswith("toque_token")}
    ends = (now + timedelta(days=30)).timestamp()
    assert found == {("toque_token_expiry_timestamp_seconds", "ci"): ends}


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


def test_the_log_in_redis_has_a_length_and_a_lag(
    context: Context, redis_server: RedisServer, tmp_path: Path
) -> None:
    used = Context(context.store, context.store_url, redis_url=redis_server.url, clock=lambda: NOW)
    with_log = LogWriter(tmp_path / "wal", "predictions", redis_server.url, poll_s=0.01)
    for _ in range(3):
        with_log.append(b"x")
    with_log.close()
    found = measured(used)
    assert found["toque_log_waiting_records", "default", "predictions"] == 3.0
    assert found["toque_log_waiting_records", "default", "labels"] == 0.0
    assert found[("toque_redis_up",)] == 1.0
    assert found[("toque_redis_used_bytes",)] > 0
    redis_server.kill()
    found = measured(used)
    assert found[("toque_redis_up",)] == 0.0
    assert found["toque_platform_readable", "log of default"] == 0.0


def test_lag_is_the_wait_of_the_oldest_record_that_is_not_read() -> None:
    times = iter([0.0, 5.0, 10.0, 15.0, 20.0, 25.0])
    lag = Lag(clock=lambda: next(times))
    found = [lag.at(*each) for each in [(10, 10), (20, 10), (30, 10), (30, 20), (30, 30), (31, 30)]]
    # 11..20 were seen first at 5, 21..30 at 10, 31 at 25
    assert found == [0.0, 0.0, 5.0, 5.0, 0.0, 0.0]


def test_certificates_of_the_redis_url_have_an_end(context: Context, tmp_path: Path) -> None:
    file, ends = tmp_path / "ca.pem", datetime(2031, 5, 1, tzinfo=UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2021, 5, 1, tzinfo=UTC))
        .not_valid_after(ends)
        .sign(key, hashes.SHA256())
    )
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    url = f"rediss://127.0.0.1:1?ssl_ca_certs={file}"
    found = measured(Context(context.store, context.store_url, redis_url=url, clock=lambda: NOW))
    assert found["toque_certificate_expiry_timestamp_seconds", str(file)] == ends.timestamp()
    assert found[("toque_redis_up",)] == 0.0


def test_the_moment_of_the_newest_whole_backup_is_a_gauge(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.store.put("notes/one", b"1")
    target = open_store(f"file://{tmp_path}/backup")
    assert measured(context)["toque_backup_timestamp_seconds",] == 0.0
    with monkeypatch.context() as patch:
        patch.setattr("toque.functions.maintenance.backup.copy_store", _refuse)
        with pytest.raises(RegistryError):
            back_up(context.store, None, target)
    assert measured(context)["toque_backup_timestamp_seconds",] == 0.0
    done = back_up(context.store, None, target).copy_report
    assert done is not None
    moment = measured(context)["toque_backup_timestamp_seconds",]
    assert moment == done.whole_at.timestamp()
    with monkeypatch.context() as patch:
        damaged = replace(done, verified=replace(done.verified, findings=("a table lost a file",)))
        patch.setattr("toque.functions.maintenance.backup.copy_store", lambda *_, **__: damaged)
        back_up(context.store, None, target)
    assert measured(context)["toque_backup_timestamp_seconds",] == moment


def test_a_restored_platform_has_no_backup_yet(context: Context, tmp_path: Path) -> None:
    target, restored = open_store(f"file://{tmp_path}/backup"), open_store(f"file://{tmp_path}/restored")
    context.store.put("notes/one", b"1")
    for _ in range(2):  # the second copies a store in which the first left its moment
        back_up(context.store, None, target)
    restore(target, restored)
    assert last_backup(restored) is None


def _refuse(*_: Any, **__: Any) -> None:
    raise RegistryError("the target is full")
