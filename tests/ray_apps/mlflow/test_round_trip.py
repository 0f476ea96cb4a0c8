from pathlib import Path

import pytest

from tests.ray_apps.mlflow.conftest import TrackingServer, run_client

SCRIPT = Path(__file__).with_name("round_trip.py")


@pytest.mark.slow
def test_an_unmodified_client_logs_registers_and_loads_by_alias(server: TrackingServer, address: str):
    told = run_client(SCRIPT, address, server.tokens["ada"], server.folder)
    run = told["run"]
    assert told["status"] == "FINISHED"
    assert told["params"] == {"lr": "0.01", "layers": "1"}
    assert told["loss"] == pytest.approx(1 / 3)
    assert told["nan"] == "nan"
    assert (told["team"], told["verdict"]) == ("ops", "good")
    assert told["history"] == [[0, 1.0], [1, 0.5], [2, 0.333]]
    assert told["searched"] == [run]
    assert told["files"] == ["notes"]
    assert told["note"] == "because"
    assert told["version"] == ["1", run, "READY", ["champion"], {"checked": "yes"}]
    assert (told["models"], told["versions"], told["logged"]) == (["late"], ["1"], ["model"])
    assert told["same"]
    assert told["uri"]
    assert told["absent"] == "RESOURCE_DOES_NOT_EXIST"
    assert told["experiments"] == ["Default", "late flights / first try"]

    version = server.registry.get_version("late", "champion")
    assert (version.author, version.lineage.run) == ("ada", run)
    assert version.metrics["log_loss"] == pytest.approx(1 / 3)  # of the model's step
    assert version.metrics["auc"] == 0.75  # of the run
    assert {"MLmodel", "data/model.pt2"} <= set(version.files)
    assert version.code_files == ()
    assert version.signature is not None
    assert (version.signature.inputs[0].datatype, version.signature.inputs[0].shape) == ("FP32", [-1, 2])
    server.registry.verify("late")
    record = server.registry.get_record(run)
    assert (record.actor, record.status, record.name) == ("ada", "FINISHED", "linear")
    assert record.tags["verdict"] == "good"
    (searched,) = server.registry.search_runs(record.experiment, "metrics.log_loss < 0.5")
    assert searched.id == run
