"""Vectors of texts by a predictor: what it is asked, and models that cannot answer."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from toque.ray_apps.predictor.inference.embedding import embed
from toque.ray_apps.predictor.protocol.errors import BadRequest, NotReady
from toque.registry.models import TensorSpec


def predictor(outputs: Any, *inputs: TensorSpec, served: bool = True) -> Any:
    """A predictor that answers with the same outputs, and notes what it was asked."""
    version = SimpleNamespace(signature=SimpleNamespace(inputs=inputs)) if served else None
    made = SimpleNamespace(
        asked=[],
        engine=SimpleNamespace(model="m", routes=SimpleNamespace(champion=version), champion_pending=False),
    )

    async def infer(request: Any) -> Any:
        made.asked.append(request.inputs)
        return SimpleNamespace(outputs={"vectors": outputs})

    made.infer = infer
    return made


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
async def test_texts_are_asked_as_one_tensor_of_bytes(shape: tuple[int, ...]) -> None:
    asked = predictor(np.ones((2, 3), np.float32), TensorSpec(name="text", datatype="BYTES", shape=shape))
    assert (await embed(asked, ["früh", "b"])).shape == (2, 3)
    (given,) = asked.asked
    assert given["text"].tolist() == np.array(["früh".encode(), b"b"], object).reshape(2, *shape[1:]).tolist()


async def test_texts_wait_for_a_champion_that_is_being_loaded() -> None:
    text = TensorSpec(name="text", datatype="BYTES", shape=(-1,))
    asked = predictor(np.ones((1, 3), np.float32), text)
    loading, asked.engine.routes.champion = asked.engine.routes.champion, None
    asked.engine.champion_pending = True

    async def loaded() -> None:
        asked.engine.routes.champion = loading

    asked.pending_champion = SimpleNamespace(loaded=loaded)
    assert (await embed(asked, ["a"])).shape == (1, 3)


async def test_a_model_that_embeds_no_texts_is_refused() -> None:
    text = TensorSpec(name="text", datatype="BYTES", shape=(-1,))
    with pytest.raises(NotReady, match="has no champion"):
        await embed(predictor(None, text, served=False), ["a"])
    with pytest.raises(BadRequest, match="takes x: FP32; a text model takes one tensor of BYTES"):
        await embed(predictor(None, TensorSpec(name="x", datatype="FP32", shape=(-1, 2))), ["a"])
    with pytest.raises(BadRequest, match="not a vector a text"):
        await embed(predictor(np.ones(2, np.float32), text), ["a", "b"])
