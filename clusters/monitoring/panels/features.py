"""The dashboard of features: are the features fresh, full and found?"""

from __future__ import annotations

from typing import Final

from clusters.monitoring.panels.panel import Dashboard, Panel, quantile, rate

_VIEW = '{workspace=~"$workspace",view=~"$view"}'
FEATURES: Final = Dashboard(
    "features",
    "features",
    "Are the features fresh, full and found?",
    (
        (
            "Views",
            (
                Panel(
                    "Age of the newest row",
                    "s",
                    (
                        (
                            f"toque_feature_freshness_seconds{_VIEW} + (time() - toque_feature_measured_timestamp_seconds{_VIEW})",
                            "{{view}}",
                        ),
                    ),
                ),
                Panel("Rows of the table", "short", ((f"toque_feature_rows{_VIEW}", "{{view}}"),)),
                Panel(
                    "Share of recent keys that are online",
                    "percentunit",
                    ((f"toque_feature_coverage_ratio{_VIEW}", "{{view}}"),),
                    may_be_empty=True,
                ),
                Panel(
                    "Share of recent rows with a value",
                    "percentunit",
                    ((f"toque_feature_fill_ratio{_VIEW}", "{{view}} {{feature}}"),),
                ),
            ),
        ),
        (
            "Look-ups by key",
            (
                Panel(
                    "Latency of a look-up: half and 99 %",
                    "s",
                    (
                        (quantile(0.5, "toque_features_lookup_seconds", by="model"), "{{model}} 50 %"),
                        (quantile(0.99, "toque_features_lookup_seconds", by="model"), "{{model}} 99 %"),
                    ),
                ),
                Panel(
                    "Rows looked up",
                    "cps",
                    ((rate("toque_features_lookup_rows_total", by="model"), "{{model}}"),),
                ),
                Panel(
                    "Values that were not found",
                    "cps",
                    ((rate("toque_features_missing_values_total", by="model"), "{{model}}"),),
                ),
            ),
        ),
    ),
    (("workspace", "toque_feature_rows"), ("view", "toque_feature_rows")),
)
