from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from toque.registry import (
    Dependent,
    InvalidInput,
    Lineage,
    ObjectStore,
    Registry,
    Signature,
    TableSnapshot,
    TensorSpec,
)

SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 1])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
    example={"x": [[float("nan")]]},
)


def ticking() -> Any:
    """A clock that is an hour later each time."""
    times = iter(datetime(2013, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(10_000))
    return lambda: next(times)


def test_history_says_what_was_live_at_any_time(folder_store: ObjectStore, model_files: Path):
    reg = Registry(folder_store, actor="ada", clock=ticking())
    reg.create_model("m")  # hour 0
    reg.create_version("m", model_files)
    reg.create_version("m", model_files)
    reg.set_alias("m", "champion", 1)  # hour 3
    reg.set_alias("m", "champion", 2, reason="better")  # hour 4
    reg.rollback("m")  # hour 5
    start = datetime(2013, 1, 1, tzinfo=UTC)
    live = [
        reg.alias_at("m", "champion", start + timedelta(hours=h, minutes=m))
        for h, m in [(2, 59), (3, 0), (4, 30), (9, 0)]
    ]
    assert live == [None, 1, 2, 1]
    assert reg.alias_at("m", "champion", start - timedelta(days=1)) is None
    with pytest.raises(InvalidInput, match="timezone"):
        reg.alias_at("m", "champion", datetime(2013, 1, 1))  # noqa: DTZ001 - naive on purpose
    last = reg.history("m")[-2]
    assert (last.actor, last.body["reason"]) == ("ada", "better")


def test_lineage_answers_both_ways(reg: Registry, model_files: Path):
    snapshot = TableSnapshot(name="training", version=4)
    reg.create_model("m")
    reg.create_model("other")
    reg.create_version(
        "m", model_files, lineage=Lineage(run="r1", datasets=[snapshot], code="c1", features={"v": "d1"})
    )
    reg.create_version("m", model_files, lineage=Lineage(code="c2"))
    reg.create_version("other", model_files, lineage=Lineage(datasets=[snapshot]))
    reg.set_alias("m", "champion", 1)
    reg.set_traffic("m", {"canary": (2, 0.1)})
    first = Dependent(model="m", version=1, aliases=("champion",), arm="champion")
    assert reg.dependents(snapshot) == [first, Dependent(model="other", version=1)]
    assert reg.dependents("c1") == reg.dependents("d1") == reg.dependents("r1") == [first]
    assert reg.dependents("c2") == [Dependent(model="m", version=2, arm="canary")]
    assert reg.dependents(TableSnapshot(name="training", version=5)) == []
    reg.promote("m", 2)
    assert reg.dependents("c1") == [Dependent(model="m", version=1)]
    assert reg.dependents("c2") == [Dependent(model="m", version=2, aliases=("champion",), arm="champion")]
    reg.delete_version("m", 1)
    assert reg.dependents("c1") == []


def test_a_model_card_tells_what_is_recorded(reg: Registry, model_files: Path):
    reg.create_model("m", description="Late or not?")
    lineage = Lineage(
        run="r1",
        datasets=[TableSnapshot(name="training", version=4)],
        code="c" * 64,
        features={"v": "d" * 64},
    )
    reg.create_version(
        "m", model_files, signature=SIGNATURE, metrics={"log_loss": 0.5}, lineage=lineage, tags={"a|b": "c"}
    )
    reg.as_actor("bob").approve("m", 1, comment="fine")
    reg.record_gate("m", 1, "offline", False)
    reg.set_alias("m", "champion", 1)
    card = reg.card("m", "champion")
    for text in (
        "# m@1",
        "Late or not?",
        "READY, alias 'champion'",
        "| log_loss | 0.5 |",
        "| in | x | FP32 | [-1, 1] |",
        "gate offline: FAILED",
        "approved by bob",
        "table training@4",
        "run r1",
        "a\\|b",
    ):
        assert text in card
