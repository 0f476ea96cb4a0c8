import json
import math
import random
from pathlib import Path

import pytest
from pydantic import ValidationError

import load.scenarios
from load.scenarios.payload import keyed_request, problem_of, read_rows, tensor_request
from load.scenarios.slo import Measured, Objectives, Slo, judge

EVERYTHING = Objectives(p50_ms=10, p99_ms=20, error_share=0.1, requests_per_s=5)


def test_what_holds_is_said_and_what_does_not():
    good = Measured(requests=100, failures=10, seconds=20.0, latencies={10: 99, 25: 1})
    assert all(finding.held for finding in judge(good, EVERYTHING))
    bad = Measured(requests=100, failures=11, seconds=25.0, latencies={12: 50, 25: 50})
    assert [f.objective for f in judge(bad, EVERYTHING) if not f.held] == [
        "p50_ms",
        "p99_ms",
        "error_share",
        "requests_per_s",
    ]


def test_no_traffic_holds_nothing():
    findings = judge(Measured.of([], name="infer"), EVERYTHING)
    assert not any(finding.held for finding in findings)
    assert not judge(Measured.of([], name="infer"), Objectives())[0].held


def test_percentiles_are_counted_from_the_least():
    measured = Measured(requests=4, failures=0, seconds=1.0, latencies={40: 1, 10: 2, 30: 1})
    assert [measured.latency_ms(share) for share in (0.25, 0.5, 0.75, 1.0)] == [10, 10, 30, 40]
    assert math.isnan(Measured(0, 0, 0.0, {}).latency_ms(0.5))


def test_the_shipped_objectives_can_be_read_and_a_typo_is_named(tmp_path: Path):
    shipped = Slo.read(Path(load.scenarios.__file__).parent / "slo.toml")
    assert shipped.objectives.p99_ms is not None
    (tmp_path / "slo.toml").write_text("[objectives]\np99 = 3\n")
    with pytest.raises(ValidationError, match=r"objectives\.p99"):
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
