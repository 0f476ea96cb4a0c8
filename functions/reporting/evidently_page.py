"""Report of evidently's data-drift page for recent requests against the training set.

Evidently compares rows with rows, so both sides are sampled, and the page says so. Its verdicts are its own: the monitors' tests know
the sizes of both sides and correct over columns, and only they raise alarms.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import pyarrow as pa
from pydantic import BaseModel, Field

from toque.functions.arguments import Model
from toque.functions.monitoring.drift.reference import DatasetRows
from toque.functions.monitoring.logged_features import FeatureColumns, feature_table, sample_rows
from toque.functions.prediction_log import predictions
from toque.functions.reporting.page import write_page
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import Table

_COLUMNS = ("prediction_id", "version", "shadow", "predicted_at", "numeric", "categorical")
_FEWEST = 30
_DATA_BEGIN, _DATA_END = "<script>\n    var ", ";\n</script>"
_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
_DATA = re.compile(r"\w+ = \{.*\};\n    var additional_graphs_\w+ = \{.*\}")  # JSON holds no line breaks


class EvidentlyReport(BaseModel, frozen=True):
    """Key of the page in the store, and the numbers of rows sampled and available on each side."""

    key: str
    rows_reference: int
    rows_window: int
    rows_logged: int


@function(http=True, timeout_s=900)
def evidently_report(
    model: Model,
    days: Annotated[
        int, Field(ge=1, le=36_500, description="Days up to now whose requests are compared.")
    ] = 7,
    max_rows: Annotated[
        int,
        Field(
            le=10_000_000,
            ge=_FEWEST,
            description="Rows of each side at most; of more, a random sample, always the same one.",
        ),
    ] = 5_000,
) -> EvidentlyReport:
    """Write evidently's page of data drift of the last days' requests against the champion's training set into the store.

    The page is one HTML file of some MiB without outside resources.
    Raises: ValueError without a champion, its training set, or 30 requests.
    """
    used = context()
    champion = used.registry().find_version(model, "champion")
    if champion is None or not champion.lineage.datasets:
        raise ValueError(
            f"{model!r} has no champion with a training set on record; there is nothing to compare with"
        )
    columns, snapshot = FeatureColumns.of(champion), champion.lineage.datasets[0]
    names = (*columns.numeric, *columns.categorical)
    reference = DatasetRows(Table(used.store, snapshot.name), snapshot.version, names).sample(max_rows)
    end = used.clock()
    logged = feature_table(
        predictions(used.store, model, end - timedelta(days=days), end, columns=_COLUMNS), columns
    )
    if logged.num_rows < _FEWEST:
        raise ValueError(
            f"{logged.num_rows} requests to {model!r} in the last {days} days; {_FEWEST} are needed"
        )
    window = sample_rows(logged, max_rows).select(list(names))
    key = f"reports/{model}-evidently.html"
    write_page(used.store, key, _page(reference.select(list(names)), window, columns))
    return EvidentlyReport(
        key=key, rows_reference=reference.num_rows, rows_window=window.num_rows, rows_logged=logged.num_rows
    )


def _page(reference: pa.Table, window: pa.Table, columns: FeatureColumns) -> str:
    """Render evidently's page as HTML."""
    try:
        from evidently import (  # late: an extra, and three seconds for this page alone
            DataDefinition,
            Dataset,
            Report,
        )
        from evidently.presets import DataDriftPreset
    except ImportError as error:
        raise RuntimeError("this page needs evidently; install it: pip install 'toque[reports]'") from error

    definition = DataDefinition(
        numerical_columns=list(columns.numeric), categorical_columns=list(columns.categorical)
    )
    before, now = (
        Dataset.from_pandas(rows.to_pandas(), data_definition=definition) for rows in (reference, window)
    )
    html = _escaped(Report([DataDriftPreset()]).run(now, before).get_html_str(as_iframe=False))
    sample_note = f"<p>{len(window):,} requests beside {len(reference):,} training rows, sampled where there were more.</p>"
    found = re.search(r"<body[^>]*>", html)
    return sample_note + html if found is None else html[: found.end()] + sample_note + html[found.end() :]


def _escaped(page: str) -> str:
    """Escape the data that evidently writes into its page's first script as it is.

    Values of requests are among them, which callers choose: one with `</script>` in it would run as code.
    Raises: RuntimeError if the page is not built as expected, rather than returning one that nobody escaped.
    """
    head, begin, rest = page.partition(_DATA_BEGIN)
    data, end, tail = rest.partition(_DATA_END)
    if not begin or not end or _DATA.fullmatch(data) is None:
        raise RuntimeError(
            "evidently's page is not built as that of 0.7, whose data is escaped here; pin evidently<0.8"
        )
    return (
        head + begin + data.translate(_IN_SCRIPT) + end + tail
    )  # JSON: the signs stand within its strings alone
