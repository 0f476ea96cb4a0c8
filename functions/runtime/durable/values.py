"""Forms of arguments and results in a journal: small ones by value, large ones by reference."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from toque.functions.runtime.errors import FunctionError
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


def _key(digest: str) -> str:
    return f"values/{digest[:2]}/{digest}.json"


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(each) for each in value.values())
    return all(_finite(each) for each in value) if isinstance(value, list) else True
