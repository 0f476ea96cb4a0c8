import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

import toque.load.scenarios
from toque.load.scenarios.plan import keyed_request, problem_of, read_rows, tensor_request
from toque.load.scenarios.result import broken, judge
from toque.load.scenarios.scenario import Objectives, Slo
from toque.load.scenarios.windows import Measured, Window, bin_of

EVERYTHING = Objectives(p50_ms=10, p99_ms=20, error_share=0.1, requests_per_s=5)


def measured(bins: dict[int, int], *, failed: int = 0, dropped: int = 0, seconds: float = 20) -> Measured:
    """bins: requests by whole milliseconds."""
    answered = sum(bins.values())
    window = Window(
        due=answered + failed + dropped, answered=answered, failed=failed, dropped=dropped,
        bins=Counter({bin_of(ms / 1e3): count for ms, count in bins.items()}),
    )  # fmt: skip
    return Measured.total([window], seconds=seconds)


def test_what_holds_is_said_and_what_does_not():
    good = measured({9: 1000}, failed=5, seconds=100)
    assert all(finding.held for finding in judge(good, EVERYTHING))
    bad = measured({12: 50, 25: 50}, failed=6, dropped=6, seconds=25)
    assert [f.objective for f in judge(bad, EVERYTHING) if not f.held] == [
        "p50_ms",
        "p99_ms",
        "error_share",
        "requests_per_s",
    ]
    assert broken(bad, Objectives(error_share=0.1)) is not None
    assert broken(bad, Objectives(requests_per_s=100)) is None


def test_no_traffic_holds_nothing():
    nothing = Measured.total([], seconds=0)
    assert not any(finding.held for finding in judge(nothing, EVERYTHING))
    assert not judge(nothing, Objectives())[0].held
    assert math.isnan(nothing.latency_ms(0.5))


def test_a_request_without_an_answer_is_slower_than_any_other():
    found = measured({10: 97}, failed=1, dropped=2)
    assert found.latency_ms(0.97) == pytest.approx(10, rel=1 / 64)
    assert found.latency_ms(0.98) == math.inf


def test_the_shipped_scenarios_can_be_read_and_a_typo_is_named(tmp_path: Path):
    shipped = Slo.read(Path(toque.load.scenarios.__file__).parent / "slo.toml")
    assert all(scenario.objectives.p99_ms for scenario in shipped.scenarios.values())
    assert shipped.pick(None)[0] == "steady"
    with pytest.raises(ValueError, match="no scenario 'stedy'; there are steady"):
        shipped.pick("stedy")
    (tmp_path / "slo.toml").write_text("[scenarios.a.objectives]\np99 = 3\n")
    with pytest.raises(ValidationError, match=r"scenarios\.a\.objectives\.p99"):
        Slo.read(tmp_path / "slo.toml")


def test_tensors_fit_the_metadata():
    metadata = {
        "name": "m",
        "inputs": [
            {"name": "numeric", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "categorical", "datatype": "BYTES", "shape": [-1, 2]},
            {"name": "k", "datatype": "INT64", "shape": [1]},
            {"name": "b", "datatype": "BOOL", "shape": [-1]},
        ],
    }
    inputs = tensor_request(metadata, rows=2, rng=random.Random(0))["inputs"]
    assert [(t["shape"], len(t["data"])) for t in inputs] == [([2, 3], 6), ([2, 2], 4), ([1], 1), ([2], 2)]
    assert isinstance(inputs[1]["data"][0], str)
    assert json.loads(json.dumps(inputs)) == inputs
    with pytest.raises(ValueError, match="names no inputs"):
        tensor_request({"name": "m"}, rows=1, rng=random.Random(0))
    with pytest.raises(ValueError, match="'FP8'"):
        tensor_request(
            {"inputs": [{"name": "x", "datatype": "FP8", "shape": [1]}]}, rows=1, rng=random.Random(0)
        )


def test_requests_by_key_come_from_a_file(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"entities": {"plane": "N1"}, "request": {"distance": 4}, "unit": "N1"}\n')
    rows = read_rows(path)
    assert keyed_request(rows) == {
        "parameters": {"entities": [{"plane": "N1"}], "request": [{"distance": 4}], "unit": "N1"},
        "inputs": [],
    }
    path.write_text('{"plane": "N1"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1"):
        read_rows(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no rows"):
        read_rows(path)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"id": "a", "outputs": [{"name": "p", "shape": [2, 1], "data": [[0.1], [0.2]]}]}, None),
        ({"id": "b", "outputs": [{}]}, "id is 'b'"),
        ({"id": "a", "outputs": []}, "no outputs"),
        ({"id": "a", "outputs": [{"name": "p", "shape": [2], "data": [0.1]}]}, "1 values for shape"),
        ({"id": "a", "outputs": [{"name": "p"}]}, "no shape"),
        ([], "no JSON object"),
    ],
)
def test_a_wrong_answer_is_a_failure(answer: object, problem: str | None):
    found = problem_of(answer, sent_id="a")
    assert found is None if problem is None else problem in (found or "")
