"""Functions whose runs are traced, in a module of their own so that child processes can import it."""

from __future__ import annotations

import logging

from opentelemetry import trace

from toque.functions import call, function


@function
def chop(what: str) -> str:
    with trace.get_tracer("kitchen").start_as_current_span("sharpen"):
        return f"chopped {what}"


@function
def cook(what: str) -> str:
    """Cook in two steps, of which the second is a run with a deadline."""
    logging.getLogger("kitchen").warning("cooking %s", what)
    return call(season, what=call(chop, what=what))


@function(timeout_s=60)
def season(what: str) -> str:
    return f"{what} with salt"


@function
def burn() -> str:
    raise ValueError("black")
