"""Values in the store: arguments and results, in a journal or by reference, and a cache of results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

from toque.functions.runtime.context import context
from toque.functions.runtime.errors import FunctionError
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.execution import run_to_end
from toque.functions.runtime.secret import refuse_secrets
from toque.registry.store import ObjectStore

BY_REFERENCE_ABOVE_BYTES = 1 << 20


def put_value(store: ObjectStore, value: Any) -> dict[str, Any]:
    """Convert a JSON value to its form in an entry; above 1 MiB it is first stored under its digest.

    A value with NaN or infinity, which JSON does not have, is kept as text.
    Raises: SecretLeaked if the value contains a secret of the running function.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    refuse_secrets(text, what="a value")
    data = text.encode()
    if len(data) > BY_REFERENCE_ABOVE_BYTES:
        digest = hashlib.sha256(data).hexdigest()
        store.put(
            _key(digest), data
        )  # the same digest is the same value; its time says when it was named last
        return {"sha256": digest, "size_bytes": len(data)}
    return {"json": value} if _finite(value) else {"text": text}


def get_value(store: ObjectStore, form: dict[str, Any]) -> Any:
    """Read the value that an entry holds as `form`.

    Raises: FunctionError if the stored bytes do not match their digest.
    """
    if "json" in form:
        return form["json"]
    if "text" in form:
        return json.loads(form["text"])
    data = store.get(_key(form["sha256"]))
    if hashlib.sha256(data).hexdigest() != form["sha256"]:
        raise FunctionError(
            f"the value {form['sha256'][:12]}… in the store was changed; restore it from a copy"
        )
    return json.loads(data)


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


def _key(digest: str) -> str:
    return f"values/{digest[:2]}/{digest}.json"


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(each) for each in value.values())
    return all(_finite(each) for each in value) if isinstance(value, list) else True


def _cache_key(function: DeclaredFunction, digest: str, arguments: dict[str, Any]) -> str:
    signature = function.signature
    arguments_json = json.dumps(signature.dump(signature.with_defaults(arguments)), sort_keys=True)
    return f"memos/{function.name}/{hashlib.sha256(f'{digest}{arguments_json}'.encode()).hexdigest()}.json"
