"""Every capability of the platform as a small stateless function.

This face is what a user's project needs to declare and run functions. The room may use the feature store, the
registry and the kernels; it must not know what serves it (`ray_apps`).
"""

from toque.functions.runtime.context import Context, context, use_context
from toque.functions.runtime.declaration import Cron, Demand, OnEvent, Resources, Retries
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.durable.invocation import Invocation
from toque.functions.runtime.durable.workflow import Preempted, preempted, sleep, wait_for
from toque.functions.runtime.function import Function, call, function
from toque.functions.runtime.run.declared import Future
from toque.functions.runtime.run.log import report_progress
from toque.functions.runtime.triggers.events import wait_for_event

__all__ = [
    "Context",
    "Cron",
    "Demand",
    "Function",
    "Future",
    "Invocation",
    "OnEvent",
    "Preempted",
    "Resources",
    "Retries",
    "View",
    "call",
    "context",
    "function",
    "preempted",
    "report_progress",
    "sleep",
    "use_context",
    "wait_for",
    "wait_for_event",
]

if __name__ != "toque.functions":  # under a second name, each class would be there twice
    raise ImportError(f"{__name__} is imported as toque.functions")
