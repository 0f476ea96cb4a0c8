"""`toque monitor replay`, against a gateway on a real port."""

import json
from pathlib import Path
from typing import Any

import numpy as np

import toque.functions.evaluation.log_replay  # noqa: F401 - declares what the command calls
from tests.functions.evaluation.test_log_replay import register_xgboost
from tests.functions.prediction_log.logbook import record
from toque.functions.model_formats.load import load
from toque.functions.prediction_log import epoch_us
from toque.functions.prediction_log.frames import Frame
from toque.functions.prediction_log.records import LoggedTensor
from toque.functions.prediction_log.writing.drain import add_records
from toque.ray_apps.cli import main
from toque.registry import utc_now


def test_what_differs_is_shown_and_is_the_exit_code(platform: Any, tmp_path: Path, capsys: Any) -> None:
    _, x = register_xgboost(platform.context, tmp_path / "artifact")
    signature = platform.registry.get_version("late", 1).signature
    right = load(tmp_path / "artifact", signature=signature).predict({"x": x[:1]})["y"]
    bare = {"numeric": None, "categorical": None, "outputs": None, "missing": None, "entities": None}

    def logged(name: str, y: np.ndarray) -> bytes:
        tensors = [
            LoggedTensor.of("x", x[:1], rows=1, output=False),
            LoggedTensor.of("y", y, rows=1, output=True),
        ]
        return record(name, version=1, at_us=epoch_us(utc_now()), tensors=tensors, **bare)

    store = platform.context.store
    add_records(store, "predictions", {"w": [Frame(1, logged("same", right), 0)]})
    assert main(("replay", "late", "--version", "1")) == 0
    capsys.readouterr()
    wrong = np.nextafter(right, np.float32(9))
    add_records(store, "predictions", {"w": [Frame(2, logged("other", wrong), 0)]})
    assert main(("replay", "late", "--version", "1", "--json")) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["equal"], found["different"], found["version"]) == (1, 1, 1)
    assert [each["prediction_id"] for each in found["first"]] == ["other"]
    assert main(("replay", "late", "--version", "1", "-o", "table")) == 1
    printed = capsys.readouterr().out
    assert "other" in printed
    assert main(("replay", "late", "--version", "1", "--limit", "0")) == 2
    assert "limit: Input should be greater than or equal to 1, got 0" in capsys.readouterr().err
