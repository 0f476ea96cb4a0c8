"""The class of Serve's proxy is loaded without the head; on a cluster whose head is lost: tests/cluster/test_head_loss.py."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private.function_manager import FunctionActorManager
from ray._raylet import PythonFunctionDescriptor
from ray.actor import ActorClass
from ray.serve._private import proxy

from toque.ray_apps.serve.deregistration import load_proxy_class_here

PROXY = proxy.ProxyActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]  # Ray's


class HeadAskedError(Exception):
    """A process asked the head."""


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What loads actor classes in a process whose head is away."""

    def ask(*_: object) -> None:
        raise HeadAskedError

    monkeypatch.setattr(
        FunctionActorManager, "_load_actor_class_from_gcs", FunctionActorManager._load_actor_class_from_gcs
    )
    load_proxy_class_here()
    load_proxy_class_here()  # as by the second server of a process
    head_away = SimpleNamespace(
        gcs_client=SimpleNamespace(internal_kv_get=ask), load_code_from_local=False, mode=None
    )
    return FunctionActorManager(head_away)  # type: ignore[arg-type]  # what of a worker it takes


def test_the_proxy_is_known_though_the_head_is_away(manager: Any) -> None:
    loaded = manager.load_actor_class(None, PythonFunctionDescriptor.from_class(PROXY))
    assert loaded is PROXY


def test_the_head_is_asked_for_every_other_class(manager: Any) -> None:
    with pytest.raises(HeadAskedError):
        manager.load_actor_class(ray.JobID.from_int(1), PythonFunctionDescriptor.from_class(HeadAskedError))


def test_the_proxy_is_the_one_actor_class_of_its_module() -> None:
    assert [name for name, each in vars(proxy).items() if isinstance(each, ActorClass)] == ["ProxyActor"]
