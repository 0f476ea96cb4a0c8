"""Requests of a plan say that they are of a load test, unless they are to pass for those of users."""

import json
from pathlib import Path

import pytest

from toque.load.scenarios.plan import plan_of
from toque.load.scenarios.scenario import Ask, Scenario

METADATA = {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]}


@pytest.mark.parametrize("as_users", [False, True])
def test_each_request_of_a_plan_is_marked_as_a_load_test(tmp_path: Path, *, as_users: bool) -> None:
    keys = tmp_path / "keys.jsonl"
    keys.write_text('{"entities": {"plane": "N1"}, "unit": "N1"}\n')
    scenario = Scenario(mix=(Ask(), Ask(rows=3), Ask(keys=keys)), as_users=as_users)
    plan = plan_of("http://here", "m", scenario, metadata_of=lambda _: METADATA)
    bodies = [json.loads(body) for part in plan.parts for body in part.bodies]
    marks = {body.get("parameters", {}).get("load_test") for body in bodies}
    assert marks == ({None} if as_users else {True})
    assert all(body["parameters"]["entities"] == [{"plane": "N1"}] for body in bodies if not body["inputs"])
