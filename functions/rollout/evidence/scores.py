"""Scores of a language model's live answers, as a guardrail of its rollout reads them."""

from __future__ import annotations

from datetime import datetime

import polars as pl
import pyarrow.compute as pc

from toque.functions.monitoring.language.scores import ScoreTable, rule_of
from toque.functions.monitoring.language.settings import monitors_journal
from toque.functions.rollout.evidence.metrics import METRIC, MetricRows
from toque.functions.runtime.context import Context

_COLUMNS = ("prediction_id", "shadow", "rule", "score")


def read_score(used: Context, model: str, scorer: str, since: datetime) -> MetricRows:
    """Read the scores by a scorer, as it is set now, of the answers that callers got from the day of `since` on.

    Without such a scorer there are none, and every answer counts as one that lacks its value.
    """
    monitors = monitors_journal(used.store, model, actor=used.actor).refresh().monitors
    chosen = [] if monitors is None else [each for each in monitors.scorers if each.label == scorer]
    if monitors is None or not chosen:
        return MetricRows(METRIC.empty_table())
    rows = ScoreTable(used.store, model).read(since, columns=_COLUMNS)
    mine = pc.and_(pc.equal(rows["rule"], rule_of(chosen[0])), pc.invert(rows["shadow"]))
    values = pl.DataFrame(rows.filter(pc.and_(mine, pc.is_valid(rows["score"]))))
    once = values.select("prediction_id", pl.col("score").alias("value")).unique("prediction_id")
    policy = used.registry().get_model(model).policy
    return MetricRows(once.to_arrow(), share=monitors.share_of(policy))
