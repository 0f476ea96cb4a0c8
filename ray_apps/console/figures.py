"""Texts of a model's live figures, as its page shows them and as they are sent to it while they change."""

from __future__ import annotations

from typing import Any

from toque.ray_apps.console.rendering import milliseconds, number


def figure_texts(live: dict[str, Any]) -> dict[str, str]:
    """Write the figures of each arm: "arm@version/figure" -> text."""
    return {
        f"{each['arm']}@{each['version']}/{name}": text
        for each in live["arms"]
        for name, text in {
            "rate": number(float(f"{each['requests_per_s']:.3g}")),
            "errors": number(each["errors"]),
            "missing": number(each["missing"]),
            "p50": milliseconds(each["p50_ms"]),
            "p99": milliseconds(each["p99_ms"]),
        }.items()
    }
