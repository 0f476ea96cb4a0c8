"""A user's own network for pictures: trained, cut off, gone on with, registered and asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from examples.images import Reading, pictures
from toque.functions import Context, use_context
from toque.functions.model_formats.load import torch_threads
from toque.functions.training import RecipeParams, train_recipe
from toque.ray_apps.predictor import PredictorOptions
from toque.ray_apps.predictor.deploy.deployment import build_predictor
from toque.ray_apps.predictor.deploy.standalone import EndpointRouter
from toque.registry import Access, open_store
from toque.registry.access import Grant

PARAMS = RecipeParams(lr=1e-2, epochs=6, batch_size=64, checkpoint_steps=5)
STEPS = 6 * (1437 // 64)
CUT = 60  # within the third epoch


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Context]:
    """The example's project, with an empty store."""
    url = f"file://{tmp_path}/store"
    made = Context(store=open_store(url), store_url=url, actor="ada", project="examples.images")
    with use_context(made), torch_threads(1):
        yield made


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that are taken, counted; the one that is numbered CUT is interrupted."""
    taken: list[int] = []
    own = Reading.train_batch

    def counted(task: Reading, rows: object) -> object:
        taken.append(len(taken))
        if len(taken) == CUT:
            raise KeyboardInterrupt
        return own(task, rows)  # type: ignore[arg-type]  # what the loop gives

    monkeypatch.setattr(Reading, "train_batch", counted)
    return taken


async def test_a_recipe_for_pictures_goes_on_where_it_was_cut_off_and_its_version_is_served(
    project: Context, steps: list[int]
):
    with pytest.raises(KeyboardInterrupt):
        train_recipe("reader", "digits", params=PARAMS)
    trained = train_recipe("reader", "digits", params=PARAMS)
    assert STEPS < len(steps) <= STEPS + 1 + PARAMS.checkpoint_steps  # at most an interval was repeated
    assert trained.metrics["valid_loss"] < 0.5  # 2.3 at chance
    assert trained.version is not None
    project.registry().promote("reader", trained.version)
    token = Access(project.store, actor="root").create_token("asker", grants=[Grant.parse("caller:default")])
    model = build_predictor("reader", PredictorOptions(store_url=project.store_url))
    router = EndpointRouter({"reader": model}, model.auth)
    images, digits = pictures()
    body = {
        "inputs": [
            {
                "name": "pixels",
                "datatype": "FP32",
                "shape": [50, 8, 8],
                "data": images[:50].flatten().tolist(),
            }
        ]
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(router), base_url="http://replica") as client:
        answer = await client.post(
            "/v2/models/reader/infer", json=body, headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
    await model.close()
    logits = answer.json()["outputs"][0]
    assert logits["shape"] == [50, 10]
    rows = [logits["data"][10 * row : 10 * row + 10] for row in range(50)]
    named = [row.index(max(row)) for row in rows]
    assert sum(a == b for a, b in zip(named, digits[:50].tolist(), strict=True)) >= 40
