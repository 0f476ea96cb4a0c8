"""Replay of the past with a challenger in the shadow: logged vectors, scored again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.functions.evaluation.realised_loss import Scorer, rescore
from toque.functions.prediction_log.records import ANSWER_TEXT
from toque.functions.rollout.evidence.cohort_sums import ReadOutcomes, sum_cohorts
from toque.functions.rollout.evidence.sums import PairedLoss
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState
from toque.registry.models import Signature


class _DiscardingStore:
    """Store that discards the sums of a replay."""

    def find(self, key: str) -> bytes | None:  # noqa: ARG002 - the store's verb
        return None

    def put(self, key: str, data: bytes) -> None:
        """Discard the object without storing it."""


def replayed_loss(
    read: ReadOutcomes,
    scorer: Scorer,
    policy: RolloutPolicy,
    *,
    champion: int,
    logged: Signature,
    start: datetime,
    now: datetime,
) -> PairedLoss:
    """Compute the paired losses that a shadow would have had from `start` until `now`.

    read: outcomes with the logged `numeric` and `categorical`, unlabelled ones included. scorer: the loaded challenger.
    logged: signature of the champion, whose vectors the log holds.
    """
    replay = champion + 1  # any other number
    state = RolloutState(
        rollout=0,
        champion=champion,
        challenger=replay,
        policy=policy,
        stage="shadow",
        started_at=start,
        stage_since=start,
        traffic_entry=0,
    )

    def with_shadow(since: datetime, until: datetime) -> pa.Table:
        rows = read(since, until)
        mine = pc.and_(pc.equal(rows["version"], champion), pc.invert(rows["shadow"]))
        for name in _logged_sides(logged):  # null where a row was too large to be logged
            mine = pc.and_(mine, pc.is_valid(rows[name]))
        rows = rows.filter(mine)
        return pa.concat_tables([rows, _shadow_of(rows, scorer, {champion: logged}, replay)])

    return sum_cohorts(_DiscardingStore(), "replay", state, with_shadow, now).loss


def _logged_sides(signature: Signature) -> list[str]:
    """Columns of the log that hold the inputs of a version: numbers, texts or both."""
    texts = {spec.datatype == "BYTES" for spec in signature.inputs}
    return [name for name, text in (("numeric", False), ("categorical", True)) if text in texts]


def _shadow_of(rows: pa.Table, scorer: Scorer, logged: Mapping[int, Signature], version: int) -> pa.Table:
    outputs = rescore(rows, scorer, logged)
    changed = {}
    if outputs.dtype == object:
        texts = outputs[:, 0].tolist()
        outputs = np.array([[len(each)] for each in texts])
        if ANSWER_TEXT.name in rows.column_names:
            changed[ANSWER_TEXT.name] = pa.array(texts, ANSWER_TEXT.type)
    answers = pa.array(outputs.astype(np.float32).tolist(), type=rows.schema.field("outputs").type)
    changed |= {
        "version": pa.array(np.full(rows.num_rows, version, dtype=np.int64)),
        "shadow": pa.array(np.ones(rows.num_rows, dtype=bool)),
        "outputs": answers,
    }
    for name, column in changed.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), column)
    return rows
