"""Every capability of the platform as a small stateless function.

This face is what a user's project needs to declare and run functions. The room may use the feature store, the
registry and the kernels; it must not know what serves it (`ray_apps`).
"""

from functions.runtime.context import Context, context, use_context
from functions.runtime.declaration import Cron, OnEvent, Resources, Retries
from functions.runtime.function import Function, function
from functions.runtime.future import Future

__all__ = [
    "Context",
    "Cron",
    "Function",
    "Future",
    "OnEvent",
    "Resources",
    "Retries",
    "context",
    "function",
    "use_context",
]
