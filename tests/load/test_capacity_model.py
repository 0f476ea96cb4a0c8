import importlib

import pytest

from toque.load.capacity_model import Cluster, Costs, Demand, parts, s3_price_a_month
from toque.load.capacity_model.measure import drain_seconds
from toque.load.capacity_model.model import nodes_needed, replicas_of, store_requests
from toque.registry import open_store

LARGE = Demand(models=1_000, predictions_s=1e6, labels_s=1e5)


def test_each_part_is_its_load_over_its_capacity_worst_first():
    found = parts(LARGE, Cluster(100), Costs(row_s=10e-6, commit_s=0.0, store_latency_s=0.0))
    assert [part.utilisation for part in found] == sorted((part.utilisation for part in found), reverse=True)
    drain = next(part for part in found if part.name == "drain")
    assert drain.utilisation == pytest.approx(11.0)  # 1.1 million rows of 10 µs in a second
    assert found[0].name == "drain"


def test_a_commit_waits_for_its_requests():
    costs = Costs(row_s=0.0, commit_s=0.01, commit_turns=5, store_latency_s=0.03)
    drain = next(part for part in parts(Demand(10, 1e3), Cluster(3), costs) if part.name == "drain")
    assert drain.load == pytest.approx(10 / 10 * (0.01 + 5 * 0.03) / 8)
    module = importlib.import_module("toque.functions.prediction_log.writing.drain")
    assert Cluster(3).commits_at_once == module.COMMITS_AT_ONCE


def test_replicas_poll_the_store_unless_redis_wakes_them():
    polled = store_requests(Demand(10, 100.0), Cluster(3, drain_every_s=1e9), Costs())[1]
    woken = store_requests(Demand(10, 100.0), Cluster(3, drain_every_s=1e9, poll_s=0), Costs())[1]
    assert polled - woken == pytest.approx(20 / 0.25)  # two replicas of ten models, four times a second
    price = s3_price_a_month(Demand(10, 100.0), Cluster(3, drain_every_s=1e9), Costs(invocation_entries=0))
    assert price == pytest.approx(80 * 30 * 86_400 * 0.0004 / 1_000, rel=1e-3)


def test_replicas_and_nodes_follow_the_larger_of_models_and_traffic():
    costs = Costs(replica_cpu_s=1e-3, door_cpu_s=0.0)
    assert replicas_of(Demand(10, 100.0), Cluster(3), costs) == 20
    assert replicas_of(Demand(10, 100_000.0), Cluster(3), costs) == 100
    assert nodes_needed(Demand(1, 11_000.0), Cluster(1, cores=16), costs) == 1
    assert nodes_needed(Demand(1, 11_300.0), Cluster(1, cores=16), costs) == 2


def test_a_model_s_rows_are_decoded_for_its_own_table_alone(tmp_path, monkeypatch):
    """The drain's work is linear in rows, however many models share them, as the model says."""
    drain = importlib.import_module("toque.functions.prediction_log.writing.drain")
    decoded = []
    real = drain.prediction_columns
    monkeypatch.setattr(
        drain, "prediction_columns", lambda payloads: real(decoded.extend(p := list(payloads)) or p)
    )
    assert drain_seconds(open_store(tmp_path.as_uri()), rows=60, models=6, rounds=1) > 0
    assert len(decoded) == 2 * 60
