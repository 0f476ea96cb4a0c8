"""Settings of a replica's process: its threads, and the process that loads models first."""

from __future__ import annotations

import os
import sys
from functools import cache

import ray

from toque.clusters.profile import apply_profile
from toque.functions.model_formats.sandbox import Sandbox, SandboxLimits
from toque.registry.store import temporary_folder

__all__ = ["configure_process", "sandbox_of"]


def configure_process(limits: SandboxLimits) -> None:
    """Read the cluster's profile, give torch as many threads as CPUs are reserved, and shorten the interpreter's thread switches.

    limits: of the sandbox, whose process imports torch at the same time.
    """
    apply_profile(os.environ)
    sandbox_of(limits).start()
    import torch  # late: only replicas need it

    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    sys.setswitchinterval(0.001)  # background threads delay the answering one for this long at most


@cache
def sandbox_of(limits: SandboxLimits) -> Sandbox:
    """The sandbox of this process; all processes of one user on one machine share its verdicts."""
    return Sandbox(limits, verdicts=temporary_folder("verdicts"), environment=os.environ)
