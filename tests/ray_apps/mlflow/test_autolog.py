from pathlib import Path

import pytest

from tests.ray_apps.mlflow.conftest import TrackingServer, run_client

SCRIPT = Path(__file__).with_name("autolog.py")


@pytest.mark.long
@pytest.mark.slow
def test_libraries_that_log_by_themselves_leave_parameters_curves_data_and_models(
    server: TrackingServer, address: str
):
    runs = run_client(SCRIPT, address, server.tokens["ada"], server.folder)
    assert {run["status"] for run in runs} == {"FINISHED"}
    assert all(run["inputs"] for run in runs)
    named = {run["name"]: run for run in runs if run["parent"] is None}
    assert sorted(named) == ["lightgbm", "search", "sklearn", "xgboost"]
    assert {name: run["models"] for name, run in named.items()} == {
        "lightgbm": 1,
        "search": 2,  # the search, and the best estimator it found
        "sklearn": 1,
        "xgboost": 1,
    }
    assert named["sklearn"]["params"]["logisticregression__C"] == "1.0"
    assert named["sklearn"]["metrics"]["training_accuracy_score"] > 0.9
    assert "training_roc_curve.png" in named["sklearn"]["files"]
    for name, curve in (("xgboost", "train-logloss"), ("lightgbm", "training-binary_logloss")):
        assert named[name]["steps"][curve] == [0, 1, 2]
    tried = [run for run in runs if run["parent"] == named["search"]["id"]]
    assert sorted(run["params"]["C"] for run in tried) == ["0.1", "1.0"]
