"""Cache of results in the store, by code digest and arguments, for functions declared with `cache=True`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from toque.functions.runtime.context import context
from toque.functions.runtime.durable.values import get_value, put_value
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.execution import run_to_end


def cached_result(function: DeclaredFunction, body: Callable[..., Any], /, **arguments: Any) -> Any:
    """Return the cached result of this code for these arguments; else run `body` and cache its result.

    Raises: InvalidArguments, InvalidResult for values without a JSON form, and what `body` raises.
    """
    store = context().store
    key = cache_key(function, arguments)
    stored = store.find(key)
    if stored is None:
        stored = store.find(_cache_key(function, function.written_digest, arguments))
    if stored is not None:
        return function.signature.load_result(get_value(store, json.loads(stored)))
    result = run_to_end(body, arguments)
    stored_form = put_value(store, function.signature.dump_result(result))
    store.put(key, json.dumps(stored_form).encode())
    return result


def cache_key(function: DeclaredFunction, arguments: dict[str, Any]) -> str:
    """Compute the key of the result of this code for these arguments."""
    return _cache_key(function, function.digest, arguments)


def _cache_key(function: DeclaredFunction, digest: str, arguments: dict[str, Any]) -> str:
    signature = function.signature
    arguments_json = json.dumps(signature.dump(signature.with_defaults(arguments)), sort_keys=True)
    return f"memos/{function.name}/{hashlib.sha256(f'{digest}{arguments_json}'.encode()).hexdigest()}.json"
