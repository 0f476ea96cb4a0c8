"""Project of a model that answers texts: an address as it was typed to the street's name as it is written.

From one day on people type on the keys of old telephones: abbreviated, and the name in digits.
"""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa

from examples.loop import DAY, START
from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import PerformanceMonitor, VectorMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import Sklearn
from toque.functions.tuning import Choice, Space

TELEPHONES = 14  # the day on which people begin to type on them
ROWS_A_DAY = 120
SPACE: Space = {"letters": Choice(choices=[2, 3])}
_STREETS = [
    f"{name} {kind}"
    for name in ("Oak", "Elm", "Ash", "Main", "Mill", "Park", "Church", "Station", "North", "River")
    for kind in ("Street", "Road", "Avenue")
]
_KEYS = str.maketrans("abcdefghijklmnopqrstuvwxyz", "22233344455566677778889999")
_SHORT = {"Street": "st", "Road": "rd", "Avenue": "ave"}


def typed(day: int) -> pa.Table:
    """Addresses of one day as they were typed; what was meant is known half a day later."""
    chance = random.Random(day)
    meant = [chance.choice(_STREETS) for _ in range(ROWS_A_DAY)]
    asked = [START + day * DAY + DAY * (place + 0.5) / ROWS_A_DAY for place in range(ROWS_A_DAY)]
    return pa.table(
        {
            "row_id": [f"{day}-{place}" for place in range(ROWS_A_DAY)],
            "event_timestamp": asked,
            "label_known_at": [moment + DAY / 2 for moment in asked],
            "street": meant,
            "text": [_typed(each, chance, short=day >= TELEPHONES) for each in meant],
        }
    )


def _typed(street: str, chance: random.Random, *, short: bool) -> str:
    name, kind = street.split()
    if short:
        name, kind = name.lower().translate(_KEYS), _SHORT[kind]
    return f"{chance.randint(1, 99)} {name} {kind}".lower()


def reader(letters: int) -> Any:
    """Make a classifier of streets by pieces of `letters` letters, whose classes are the texts to answer."""
    from sklearn.compose import make_column_transformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, letters))
    return make_pipeline(make_column_transformer((pieces, "text")), LogisticRegression(C=20.0, max_iter=200))


streets = ModelDefinition(
    name="streets",
    entities="streets/typed",
    label="street",
    outcome="text",
    categorical=("text",),
    trainer=Sklearn(make=reader, values={"letters": 2}, split="random", valid_fraction=0.2),
    gate=Gate(max_log_loss_ratio={"constant": 0.5, "nearest": 1.5}, min_rows=100),
    monitors=(PerformanceMonitor(min_labels=30), VectorMonitor(texts=("text",))),
    rollout=ROLLOUT,
    retraining=RETRAINING,
    governance=GOVERNANCE,
)
FEATURES: list[Any] = []
MODELS = [streets]
