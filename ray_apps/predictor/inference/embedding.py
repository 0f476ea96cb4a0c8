"""Vectors of texts by a model that takes texts, for searches by text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import BadRequest, NotReady
from toque.ray_apps.predictor.protocol.json import InferRequest

__all__ = ["embed"]


async def embed(predictor: Predictor, texts: Sequence[str]) -> Array:
    """Ask a predictor for vectors of texts, (texts, length), as any request is: split, logged and counted.

    Raises: BadRequest if its champion takes anything but one tensor of texts, or answers with no matrix of numbers; NotReady
    without a champion.
    """
    if predictor.engine.champion_pending:
        await predictor.pending_champion.loaded()
    version = predictor.engine.routes.champion
    if version is None:
        raise NotReady(
            f"model {predictor.engine.model!r} has no champion that could embed texts; promote one"
        )
    given = version.signature.inputs
    if len(given) != 1 or given[0].datatype != "BYTES":
        described = ", ".join(f"{spec.name}: {spec.datatype}" for spec in given)
        raise BadRequest(f"{version} takes {described}; a text model takes one tensor of BYTES")
    shape = (len(texts), *(1 for _ in given[0].shape[1:]))
    values = np.array([text.encode() for text in texts], dtype=object).reshape(shape)
    response = await predictor.infer(InferRequest({given[0].name: values}))
    vectors = next(iter(response.outputs.values()))
    if vectors.ndim != len(("texts", "length")) or vectors.dtype.kind != "f":
        raise BadRequest(f"{version} answers with {vectors.dtype} {list(vectors.shape)}, not a vector a text")
    return vectors
