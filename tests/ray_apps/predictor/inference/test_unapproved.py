"""A caller who names a version by number gets an approved one or one that takes traffic, and loads no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray_apps.predictor.conftest import ServedModel, load_fake_scorer
from toque.ray_apps.predictor.versions.loaded import Scorer
from toque.registry import ModelPolicy, Registry, Signature, open_store

GUARDED = ModelPolicy(guarded=frozenset({"champion"}), approvals=1)


def approve(served_model: ServedModel, number: int) -> None:
    """Approve a version by another than its author."""
    Registry(open_store(f"file://{served_model.folder}/store"), actor="bob").approve("late", number)


@pytest.fixture
def loads(served_model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The values of the versions whose files were read since the champion was loaded."""
    read: list[float] = []

    def loader(folder: Path, signature: Signature) -> Scorer:
        scorer = load_fake_scorer(folder, signature)
        read.append(scorer.value)
        return scorer

    monkeypatch.setattr(served_model.engine, "_loader", loader)
    return read


async def test_an_unapproved_version_is_neither_loaded_nor_answers_by_number(
    served_model: ServedModel, loads: list[float]
):
    served_model.registry.set_policy("late", GUARDED)
    other = served_model.version(0.5)
    served_model.refresh()
    refused = await served_model.infer(path=f"/versions/{other}/infer")
    assert refused.status_code == 403
    assert f"version {other} of 'late' is not approved (0 of 1 approvals" in refused.json()["error"]
    assert loads == []
    approve(served_model, other)
    served_model.refresh()
    assert (await served_model.infer(path=f"/versions/{other}/infer")).status_code == 200
    assert loads == [0.5]


async def test_an_unapproved_version_answers_by_number_where_an_operator_put_it(served_model: ServedModel):
    served_model.registry.set_policy("late", GUARDED)
    shadow, aliased = served_model.version(0.5), served_model.version(0.75)
    served_model.registry.set_traffic("late", {}, shadows=[shadow])
    served_model.registry.set_alias("late", "candidate", aliased)
    served_model.refresh()
    for number in (1, shadow, aliased):  # the champion went live before there was a policy
        assert (await served_model.infer(path=f"/versions/{number}/infer")).status_code == 200, number


async def test_an_override_counts_and_a_model_without_a_policy_serves_any_version(served_model: ServedModel):
    other = served_model.version(0.5)
    served_model.refresh()
    assert (await served_model.infer(path=f"/versions/{other}/infer")).status_code == 200
    served_model.registry.set_policy("late", GUARDED)
    live = served_model.version(0.75)
    served_model.registry.promote("late", live, override="the champion answers nonsense")
    approve(served_model, 1)
    served_model.registry.rollback("late", "champion")
    served_model.refresh()
    assert (await served_model.infer(path=f"/versions/{live}/infer")).status_code == 200
    loaded_before = await served_model.infer(path=f"/versions/{other}/infer")
    assert loaded_before.status_code == 403


async def test_a_version_that_failed_is_not_read_again_for_each_caller(
    served_model: ServedModel, loads: list[float], monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(served_model.engine, "_clock", lambda: now[0])
    broken = served_model.version(0.5, fail="predict")
    served_model.refresh()
    for _ in range(3):
        refused = await served_model.infer(path=f"/versions/{broken}/infer")
        assert refused.status_code == 503
        assert "out of memory" in refused.json()["error"]
    assert loads == [0.5]
    now[0] = 2.0
    await served_model.infer(path=f"/versions/{broken}/infer")
    assert loads == [0.5, 0.5]
