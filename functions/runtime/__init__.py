"""The function itself: declare, invoke, record, resume, schedule, subscribe.

It knows the registry's store and journal and Ray's tasks; it must not know what any function is about.
"""

from functions.runtime.clock import Clock, FixedClock, ReplayClock, system_clock
from functions.runtime.context import Context, context, use_context

__all__ = ["Clock", "Context", "FixedClock", "ReplayClock", "context", "system_clock", "use_context"]
