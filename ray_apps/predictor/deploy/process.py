"""Settings of a replica's process: its threads and its garbage collector."""

from __future__ import annotations

import gc
import sys

import ray

__all__ = ["configure_process", "freeze"]


def configure_process() -> None:
    """Give torch as many threads as CPUs are reserved, and shorten the interpreter's thread switches."""
    import torch  # late: only replicas need it

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    sys.setswitchinterval(0.001)  # background threads delay the answering one for this long at most


def freeze() -> None:
    """Exclude all present objects from garbage collection.

    A collection of the million objects of torch and Ray takes a tenth of a second.
    """
    gc.collect()
    gc.freeze()
