"""Asks an engine for embeddings, of one text at a time where it makes no others rightly."""

from __future__ import annotations

from typing import Any, Final

import orjson

from toque.functions.generative.engines.engine import MODEL_NAME
from toque.functions.generative.engines.process import EngineProcess

__all__ = ["ask_embeddings"]

_HEADERS: Final = {"content-type": "application/json"}
_OK: Final = 200


async def ask_embeddings(process: EngineProcess, asked: dict[str, Any]) -> tuple[int, dict[str, Any] | bytes]:
    """Ask for the embeddings of `input`; returns the status, and the document of all texts, or what the engine said instead.

    asked: body of `POST /v1/embeddings`, whose `input` is a list of texts or of the token ids of each; without a model that of the
    weights. Raises: aiohttp.ClientError.
    """
    if process.engine.embedding_bounds(process.spec).together:
        return await _post(process, asked)
    found: list[dict[str, Any]] = []
    for text in asked["input"]:
        async with process.embedding:
            status, document = await _post(process, asked | {"input": text})
        if not isinstance(document, dict):
            return status, document
        found.append(document)
    return _OK, _joined(found) if found else {"object": "list", "data": []}


async def _post(process: EngineProcess, asked: dict[str, Any]) -> tuple[int, dict[str, Any] | bytes]:
    body = orjson.dumps({"model": MODEL_NAME, **asked})
    async with process.client.post(f"{process.base}/v1/embeddings", data=body, headers=_HEADERS) as answer:
        content = await answer.read()
        return answer.status, orjson.loads(content) if answer.status == _OK else content


def _joined(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the documents of single texts into that of all."""
    data = [each["data"][0] | {"index": number} for number, each in enumerate(documents)]
    names = {name for each in documents for name in each.get("usage") or {}}
    usage = {
        name: sum((each.get("usage") or {}).get(name) or 0 for each in documents) for name in sorted(names)
    }
    return documents[0] | {"data": data, "usage": usage}
