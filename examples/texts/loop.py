"""Five weeks of the text classifier in one process: `python -m examples.texts.loop`.

The texts are the docstrings of functions of packages that are installed with Toque, read from their files without
importing them. The question: from which package is it? From one day on people write them short and in lower case.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from examples.loop import DAY, START, play
from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import PerformanceMonitor, VectorMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import Sklearn
from toque.functions.tuning import Range, Space

PACKAGES = ("numpy", "pandas", "scipy", "sklearn", "torch")
SHORT_QUESTIONS = 14  # the day on which people begin to write them
TEXTS_A_DAY = 150
_OF_EACH, _FEWEST_LETTERS = 500, 60
ENTITIES = "texts/descriptions"


def classifier(c: float) -> Any:
    """Make a logistic regression on the words of the column `text`. c: inverse of its penalty."""
    from sklearn.compose import make_column_transformer  # late: only what trains needs it
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = make_column_transformer((TfidfVectorizer(max_features=5_000), "text"))
    return make_pipeline(words, LogisticRegression(C=c, max_iter=200))


package_model = ModelDefinition(
    name="package",
    entities=ENTITIES,
    label="package",
    outcome="multiclass",
    categorical=("text",),
    trainer=Sklearn(make=classifier, values={"c": 10.0}, valid_fraction=0.2),
    gate=Gate(max_log_loss_ratio={"constant": 0.8}, max_ece=0.3, min_rows=100),
    monitors=(PerformanceMonitor(min_labels=30), VectorMonitor(texts=("text",))),
    rollout=ROLLOUT,
    retraining=RETRAINING,
    governance=GOVERNANCE,
)
FEATURES: list[Any] = []
MODELS = [package_model]

SPACE: Space = {"c": Range(low=1.0, high=100.0, log=True, steps=3)}


def texts(day: int) -> pa.Table:
    """Texts of one day, drawn from all; the labels are known half a day later."""
    chance = random.Random(day)
    drawn = [chance.choice(described()) for _ in range(TEXTS_A_DAY)]
    begin = START + day * DAY
    asked = [begin + DAY * (place + 0.5) / TEXTS_A_DAY for place in range(TEXTS_A_DAY)]
    return pa.table(
        {
            "row_id": [f"{day}-{place}" for place in range(TEXTS_A_DAY)],
            "event_timestamp": asked,
            "label_known_at": [moment + DAY / 2 for moment in asked],
            "package": [PACKAGES.index(package) for package, _ in drawn],
            "text": [_short(text) if day >= SHORT_QUESTIONS else text for _, text in drawn],
        }
    )


@cache
def described() -> list[tuple[str, str]]:
    """Package and description of some functions of each package, always the same ones."""
    found = []
    for package in PACKAGES:
        of_package = sorted(set(_descriptions(package)))
        chosen = random.Random(package).sample(of_package, min(_OF_EACH, len(of_package)))
        found += [(package, text) for text in chosen]
    return found


def _descriptions(package: str) -> Iterator[str]:
    """Descriptions of a package's functions, in which its own name is left out."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"package {package!r} is not installed: pip install {package}")
    name = re.compile(rf"\b(?:{package}|np|pd|scikit-learn|pytorch)\b[.\w]*", re.IGNORECASE)
    count = 0
    for file in sorted(Path(spec.origin).parent.rglob("*.py"), key=lambda path: (len(path.parts), str(path))):
        if "test" in str(file.relative_to(Path(spec.origin).parent)):
            continue
        for function in _functions(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.get_docstring(function)
            if text and len(text) >= _FEWEST_LETTERS:
                count += 1
                yield name.sub("", " ".join(text.split()[:60]))
        if count >= _OF_EACH:
            return


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Functions of a module and of its classes and functions; expressions, nine in ten of the nodes, hold none."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef):
            yield node
        for field in ("body", "orelse", "handlers", "finalbody", "cases"):
            pending += getattr(node, field, ())


def _short(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower())[:9])


if __name__ == "__main__":
    play("examples.texts", package_model, texts, SPACE)
