"""A replica's process: its threads, and what its garbage collector leaves alone."""

from __future__ import annotations

import gc
import sys

import ray

__all__ = ["configure_process", "freeze"]


def configure_process() -> None:
    """Torch's threads, and how long others may hold the answering one up."""
    import torch  # late: it is for replicas that hold models, not for who deploys

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    sys.setswitchinterval(0.001)  # background threads hold the answering one up for this long at most


def freeze() -> None:
    """Leave what is here now to no collection: torch and Ray are a million objects, a tenth of a second each time."""
    gc.collect()
    gc.freeze()
