"""Search for features that give the label away: equal to it, or with one label for each of their values.

A feature that predicts without error is nearly always a consequence of the label, or the label written another way. The search
looks at up to 100,000 rows, spread over the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from toque.ray_apps.new_project.columns import Summaries, cleaned
from toque.ray_apps.new_project.findings import Finding
from toque.ray_apps.new_project.roles import Roles

ROWS = 100_000
_CHANCE = -20.0  # log of the chance below which values with one label each are no accident
_SAME = 0.99999  # correlation from which on two columns of numbers are one
_SEPARATED = 0.9995  # area under the curve from which on a number tells two classes apart


def sampled(table: pl.LazyFrame, found: Summaries, missing: Sequence[str]) -> pl.DataFrame:
    """Read up to 100,000 rows, evenly spread, under their names as identifiers; numbers as float64, the rest as text."""
    schema = table.collect_schema()
    step = max(1, -(-found.rows // ROWS))
    columns = []
    for column in found.columns:
        if column.kind in {"other", "empty"}:
            continue
        text = schema[column.original] == pl.String
        value = cleaned(column.original, missing) if text else pl.col(column.original)
        value = value.cast(pl.Float64 if column.numeric else pl.String, strict=False)
        columns.append(value.alias(column.name))
    spread = table.with_row_index("__row").filter(pl.col("__row") % step == 0)
    return spread.select(columns).collect(engine="streaming")


def leaks(rows: pl.DataFrame, roles: Roles, features: Sequence[str]) -> Iterator[Finding]:
    """Find the features that give the label away."""
    if roles.label not in rows.columns:  # lists, which no other column is compared with
        return
    known = rows.filter(pl.col(roles.label).is_not_null())
    for name in features:
        why = _gives_away(known.select(name, roles.label).drop_nulls(), name, roles)
        if why:
            yield Finding(
                name,
                f"it gives the label {roles.label} away: {why}",
                f"left out of the features (--keep {name} keeps it, if it is known before the label)",
                known.height,
            )


def _gives_away(both: pl.DataFrame, name: str, roles: Roles) -> str:
    if both.height < 30:  # noqa: PLR2004  # too few rows to tell
        return ""
    number = both.schema[name].is_numeric()
    if roles.outcome in {"number", "count", "ranking"}:
        same = number and abs(_correlation(both[name].to_numpy(), both[roles.label].to_numpy())) >= _SAME
        return "it is the same number up to a factor" if same else ""
    if _determined(both, name, roles.label):
        return "each of its values comes with one label"
    if number and roles.outcome == "binary":
        labels = both[roles.label].cast(pl.String).is_in(["1", "1.0", roles.classes[1]]).to_numpy()
        area = _area(both[name].to_numpy(), labels)
        if max(area, 1 - area) >= _SEPARATED:
            return "a threshold on it tells the two labels apart"
    return ""


def _determined(both: pl.DataFrame, name: str, label: str) -> bool:
    """Whether each value of a column has one label only, and that by more than chance."""
    groups = both.group_by(name).agg(pl.len().alias("rows"), pl.col(label).n_unique().alias("labels"))
    if groups["labels"].max() != 1:
        return False
    shares = both[label].value_counts()["count"].to_numpy() / both.height
    sizes = groups["rows"].to_numpy()
    chance = np.log((shares[None, :] ** np.unique(sizes)[:, None]).sum(axis=1))
    by_size = dict(zip(np.unique(sizes).tolist(), chance.tolist(), strict=True))
    return float(sum(by_size[size] for size in sizes.tolist())) < _CHANCE


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _area(values: np.ndarray, positive: np.ndarray) -> float:
    """Area under the curve of a number for a label, ties counting half."""
    ranks = pl.Series(values).rank("average").to_numpy()
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return 0.5
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))
