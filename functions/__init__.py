"""Every capability of the platform as a small stateless function.

This face is what a user's project needs to declare and run functions. The room may use the feature store, the
registry and the kernels; it must not know what serves it (`ray_apps`).
"""

from functions import renamed as _renamed  # noqa: F401  # old module paths stay importable for one release
from functions.runtime.context import Context, context, use_context
from functions.runtime.declaration import Cron, Demand, OnEvent, Resources, Retries
from functions.runtime.durable.admission.preemption import preempted
from functions.runtime.durable.invocation import Invocation
from functions.runtime.durable.workflow import Preempted, sleep, wait_for
from functions.runtime.function import Function, call, function
from functions.runtime.run.capture import report_progress
from functions.runtime.run.future import Future
from functions.runtime.triggers.waiter import wait_for_event

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
