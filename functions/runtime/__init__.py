"""Runtime of functions: declare, invoke, record, resume, schedule and subscribe them.

The room uses the registry's store and journal and Ray's tasks; it must not know what any function computes.
Inside, modules of this folder are below `run`, which is below `durable`, which is below `function` and
`triggers`.
"""

from toque.functions.runtime.clock import Clock, FixedClock, ReplayClock, system_clock
from toque.functions.runtime.context import Context, context, use_context

__all__ = ["Clock", "Context", "FixedClock", "ReplayClock", "context", "system_clock", "use_context"]
