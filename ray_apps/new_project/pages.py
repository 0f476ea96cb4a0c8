"""Files of a new project: a small Python package that its owner reads, edits and keeps."""

from __future__ import annotations

from collections.abc import Sequence

from ray_apps.new_project.draft import Draft
from ray_apps.new_project.load_page import key_type, load_page, quoted
from ray_apps.new_project.readme import readme

_WIDTH = 100
_TASKS = {"binary": "binary", "multiclass": "multiclass", "number": "regression"}
_MANY_ROWS, _SOME_ROWS = 1_000, 200  # held-out rows that calibration can be judged by, strictly and roughly
_HELD_OUT = 0.2
_MANY_DAYS = 20  # so that whole days can be held out


def pages(draft: Draft) -> dict[str, str]:
    """Text of each file of the project, by its path in the project's folder."""
    package = draft.package
    return {
        "pyproject.toml": _pyproject(draft),
        "README.md": readme(draft),
        f"{package}/__init__.py": _package(draft),
        f"{package}/features.py": _features(draft),
        f"{package}/model.py": _model(draft),
        f"{package}/load.py": load_page(draft),
        f"tests/test_{package}.py": _test(draft),
        ".gitignore": ".toque/\n__pycache__/\n",
    }


def code_lines(files: dict[str, str]) -> int:
    """Count the lines of Python that are neither empty nor a comment nor a docstring of one line."""
    lines = [
        line.strip() for name, text in files.items() if name.endswith(".py") for line in text.splitlines()
    ]
    return sum(1 for line in lines if line and not line.startswith(("#", '"""')))


def _pyproject(draft: Draft) -> str:
    return f"""\
# `toque` finds the project by this file, from this folder and those below it.
[tool.toque]
project = "{draft.package}"

[tool.pytest.ini_options]
pythonpath = ["."]
"""


def _package(draft: Draft) -> str:
    return f'''\
"""The project {draft.name}: what the platform reads of it are its features and its models."""

from {draft.package}.features import FEATURES
from {draft.package}.model import MODELS

__all__ = ["FEATURES", "MODELS"]
'''


def _features(draft: Draft) -> str:
    roles, checked = draft.roles, draft.checked
    keys = ", ".join(f'Field("{name}", {key_type(draft, name)})' for name in roles.keys)
    types = {"Float64"} if checked.numeric else set()
    types |= {"String"} if checked.categorical else set()
    types |= {key_type(draft, name) for name in roles.keys}
    imported = ", ".join(["Entity", "FeatureService", "FeatureView", "Field", *sorted(types)])
    schema = ["*(Field(name, Float64) for name in NUMERIC)"] if checked.numeric else []
    schema += ["*(Field(name, String) for name in CATEGORICAL)"] if checked.categorical else []
    return f'''\
"""Features of {draft.name}, and what they are features of."""

from featurestore import {imported}

{_names("NUMERIC", checked.numeric)}
{_names("CATEGORICAL", checked.categorical)}

entity = Entity("{roles.keys[0]}", join_keys=[{keys}])
view = FeatureView("{draft.package}", entities=[entity], schema=[{", ".join(schema)}])
service = FeatureService("{draft.package}", [view])

FEATURES = [entity, view, service]
'''


def _model(draft: Draft) -> str:
    task = _TASKS[draft.roles.outcome]
    split = "days" if draft.days >= _MANY_DAYS else "random"
    number = draft.roles.outcome == "number"
    watched = {
        "binary": "PerformanceMonitor(), DriftMonitor(), QualityMonitor()",
        "number": 'PerformanceMonitor(loss="squared_error", baseline=()), DriftMonitor(), QualityMonitor()',
        "multiclass": "DriftMonitor(), QualityMonitor()",
    }[draft.roles.outcome]
    monitors = (
        "DriftMonitor, QualityMonitor"
        if draft.roles.outcome == "multiclass"
        else "DriftMonitor, PerformanceMonitor, QualityMonitor"
    )
    rows = round(_HELD_OUT * draft.found[draft.roles.label].rows)
    calibration = "None" if number or rows < _SOME_ROWS else "0.1" if rows >= _MANY_ROWS else "0.2"
    against = (
        f"the {'mean' if number else 'shares of the classes'}, and may not lose clearly to a linear model"
    )
    retraining = (
        ""
        if draft.roles.time
        else "    retraining=None,  # without times no rows are newer: `toque train` retrains by hand\n"
    )
    return f'''\
"""The model of {draft.name}: what it predicts, how it learns, and what it must show before it is served."""

from functions.evaluation import Gate
from functions.monitoring import {monitors}
from functions.project import ModelDefinition
from functions.training import TabularParams
from registry import ModelPolicy
from {draft.package}.features import CATEGORICAL, NUMERIC, service

# It must beat {against} by 5 %, on rows it has not seen; "logistic" would name a linear model.
gate = Gate(max_log_loss_ratio={{"constant": 0.95}}, max_ece={calibration}, min_rows={min(200, max(10, rows // 2))})
model = ModelDefinition(
    name="{draft.name}",
    service=service.name,
    entities="{draft.package}/entities",
    label="{draft.roles.label}",
    numeric=tuple(NUMERIC),
    categorical=tuple(CATEGORICAL),
    training=TabularParams(task="{task}", split="{split}"),
    gate=gate,
    monitors=({watched}),
{retraining}    # You alone decide: with colleagues, ask for approvals (docs/governance.md).
    governance=ModelPolicy(guarded=frozenset({{"champion"}}), approvals=0, gates=("offline",)),
)
MODELS = [model]
'''


def _names(constant: str, names: Sequence[str]) -> str:
    """Assign a list of names to a constant, over as few lines as fit."""
    one = f"{constant} = [{', '.join(quoted(name) for name in names)}]"
    if len(one) <= _WIDTH:
        return one
    lines = ["    "]
    for name in names:
        item = f"{quoted(name)}, "
        if len(lines[-1]) + len(item) > _WIDTH:
            lines.append("    ")
        lines[-1] += item
    return "\n".join([f"{constant} = [", *(line.rstrip() for line in lines), "]"])


def _test(draft: Draft) -> str:
    keys = list(draft.roles.keys)
    same = [*keys, "event_timestamp"] if draft.roles.time else keys
    return f'''\
"""Checks of the rows that {draft.name} learns from; run them by `python -m pytest`."""

from {draft.package}.features import CATEGORICAL, NUMERIC
from {draft.package}.load import read


def test_every_row_has_a_time_and_a_key_of_its_own():
    rows = read().collect()
    assert rows["event_timestamp"].null_count() == 0
    assert not rows.select({", ".join(map(quoted, same))}).is_duplicated().any()


def test_the_label_is_no_feature():
    assert "{draft.roles.label}" not in NUMERIC + CATEGORICAL
'''
