"""What is seen of a process from outside: its log lines and traces. Everything here is set up once, where a process begins.

The rooms above write records with `logging` and spans with OpenTelemetry's API; without a set-up they go nowhere and cost
nothing. This room knows none of the rooms above.
"""

from toque.clusters.telemetry.set_up import set_up

__all__ = ["set_up"]
