"""The dashboard of features: are the features fresh, full and found?"""

from __future__ import annotations

from typing import Final

from toque.clusters.monitoring.panels.panel import Dashboard, Panel, quantile, rate, share

_VIEW = '{workspace=~"$workspace",view=~"$view"}'
_WORKSPACE = '{workspace=~"$workspace"}'
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
                            f"toque_feature_freshness_seconds{_VIEW}",
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
            "Streams",
            (
                Panel(
                    "Messages that are not read yet",
                    "short",
                    ((f"workspace_source:toque_stream_lag:sum{_WORKSPACE}", "{{source}}"),),
                    may_be_empty=True,
                ),
                Panel(
                    "Messages a second: events, kept aside",
                    "cps",
                    (
                        (rate("toque_stream_rows_total", by="source", where=_WORKSPACE), "{{source}}"),
                        (
                            rate("toque_stream_rejected_total", by="source", where=_WORKSPACE),
                            "{{source}} kept aside",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Age of the greatest event time",
                    "s",
                    (
                        (
                            f"max by (source) (toque_stream_watermark_delay_seconds{_WORKSPACE})",
                            "{{source}}",
                        ),
                    ),
                    may_be_empty=True,
                ),
                Panel(
                    "Seconds of a commit",
                    "s",
                    (
                        (
                            share(
                                rate("toque_stream_commit_seconds_total", by="source", where=_WORKSPACE),
                                rate("toque_stream_commits_total", by="source", where=_WORKSPACE),
                            ),
                            "{{source}}",
                        ),
                    ),
                    may_be_empty=True,
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
