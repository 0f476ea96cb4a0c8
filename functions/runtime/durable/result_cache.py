"""Results remembered in the store by code digest and arguments, for functions declared with `cache=True`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from functions.runtime.context import context
from functions.runtime.durable.values import get_value, put_value
from functions.runtime.run.declared import DeclaredFunction
from functions.runtime.run.execution import run_to_end


def cached_result(function: DeclaredFunction, body: Callable[..., Any], /, **arguments: Any) -> Any:
    """The result that this code gave for these arguments before, else `body`'s, which is then remembered.

    Raises: InvalidArguments, InvalidResult for what has no JSON form, and what `body` raises.
    """
    store = context().store
    key = cache_key(function, arguments)
    stored = store.find(key)
    if stored is not None:
        return function.signature.load_result(get_value(store, json.loads(stored)))
    result = run_to_end(body, arguments)
    stored_form = put_value(store, function.signature.dump_result(result))
    store.put(key, json.dumps(stored_form).encode())
    return result


def cache_key(function: DeclaredFunction, arguments: dict[str, Any]) -> str:
    """Where the result for these arguments is kept; other code, other key."""
    signature = function.signature
    arguments_json = json.dumps(signature.dump(signature.with_defaults(arguments)), sort_keys=True)
    return f"memos/{function.name}/{hashlib.sha256(f'{function.digest}{arguments_json}'.encode()).hexdigest()}.json"
