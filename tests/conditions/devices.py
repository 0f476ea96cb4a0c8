"""Devices that this machine lacks: a card whose tensors refuse those of the host, and a process group of many with one process.

`card()` is a device `cuda:0` for torch's build for CPUs: numbers are those that the host would compute, so losses and weights are real.
It cannot show kernels, streams, memory or NCCL. `fake_group()` is torch's own process group without messages: what one worker of many
does before and after its collectives is real, their results are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from unittest.mock import patch

import torch
import torch.distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CARD = torch.device("cuda:0")
_MOVES = ("_to_copy", "copy_", "_copy_from")


class OnCard(torch.Tensor):
    """Tensor that says that it is on the card; `inner` has its numbers."""

    device = property(lambda _: CARD)  # type: ignore[assignment]  # torch's own is read-only too
    is_cuda = True  # type: ignore[assignment]  # the same

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Card(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Compute an operation on the host. Raises: RuntimeError if tensors of host and card meet, as torch does."""
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    on_card = [x for x in tensors if isinstance(x, OnCard)]
    device = kwargs.get("device")
    to_card = torch.device(device).type == "cuda" if device is not None else bool(on_card)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    apart = any(not isinstance(x, OnCard) and x.dim() for x in tensors)
    if on_card and apart and name not in _MOVES and not name.startswith("index"):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu")

    def inner(x: Any) -> Any:
        return x.inner if isinstance(x, OnCard) else x

    out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    if out is None or (name.endswith("_") and not name.endswith("__")):
        return None if out is None else args[0]
    same = {id(x.inner): x for x in on_card}

    def outer(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return same.get(id(x)) or (OnCard(x) if to_card else x)

    return tree_map(outer, out)


@contextmanager
def card() -> Iterator[str]:
    """Have a device `cuda:0`; gives its name."""
    import toque.functions.training.loop.training_loop as loop
    from toque.kernels import encoder

    replaced: tuple[tuple[object, str, Callable[..., Any]], ...] = (
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),  # nothing is cast: numbers stay the host's
        (torch.cuda, "current_device", lambda: 0),
        (loop, "_gpus", lambda _: []),  # its random state is the host's
        (encoder, "_by_kernel", lambda *_: False),  # no Triton without a card
    )
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for where, name, instead in replaced:
            stack.enter_context(patch.object(where, name, instead))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Card())
        yield str(CARD)


@contextmanager
def fake_group(size: int) -> Iterator[None]:
    """Be the first of `size` workers of torch's process group, of which the others are not there."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def recorded_moves() -> Iterator[list[str]]:
    """Devices to which tensors would be moved; they stay where they are, so that no card is needed."""
    moved: list[str] = []

    def stay(self: torch.Tensor, *where: object, **named: object) -> torch.Tensor:
        moved.append(" ".join(map(str, (*where, *named.values()))))
        return self

    with patch.object(torch.Tensor, "to", stay), patch.object(torch.Tensor, "cuda", stay):
        yield moved
