"""Lets a process that answers requests take the class of Serve's Python proxy from its own code, and not from the head.

The proxy hands itself to every replica as it starts. Whoever takes an actor in hand for the first time asks the head for the
actor's class, and waits on the thread that answers requests: when a lost head comes back, with a new proxy, a replica
whose connection to the head is not open yet answers nothing meanwhile, for up to 20 s. All nodes run one version of Ray, so
the class is here already.
"""

from __future__ import annotations

from typing import Any

from ray._private.function_manager import FunctionActorManager
from ray.serve._private import proxy

__all__ = ["load_proxy_class_here"]

_ask_head = FunctionActorManager._load_actor_class_from_gcs  # noqa: SLF001  # Ray has no public name for it


def load_proxy_class_here() -> None:
    """Load the class of Serve's Python proxy from this process's modules from now on; all others as before."""
    FunctionActorManager._load_actor_class_from_gcs = _load  # type: ignore[method-assign]  # noqa: SLF001  # as above


def _load(manager: FunctionActorManager, job_id: Any, descriptor: Any) -> Any:
    if (
        descriptor.module_name == proxy.__name__
    ):  # which has one actor class; the name within it is that of a wrapper
        return proxy.ProxyActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]  # Ray's
    return _ask_head(manager, job_id, descriptor)  # type: ignore[no-untyped-call]  # Ray's
