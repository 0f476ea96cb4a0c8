"""What a function declares, and what is checked and computed of it at import: options, argument types."""

from toque.functions.runtime.declaration.values import (
    NICENESS,
    ONCE,
    Cron,
    Demand,
    OnEvent,
    Resources,
    Retries,
)

__all__ = ["NICENESS", "ONCE", "Cron", "Demand", "OnEvent", "Resources", "Retries"]
