"""Files of a new project: a small Python package, with a README, that its owner reads, edits and keeps.

They are written under a temporary name, and then the folder in one step, or nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from toque.ray_apps.new_project.draft import Draft
from toque.ray_apps.new_project.load_page import (
    declared_load_page,
    declared_test_page,
    is_declared,
    key_type,
    label_type,
    load_page,
    quoted,
    reader_name,
    source_declaration,
)
from toque.ray_apps.new_project.roles import BY_NETWORK, CLASSIFIED, Outcome
from toque.ray_apps.new_project.source import InitError

_WIDTH = 100
_REFERENCES: dict[Outcome, str] = {
    "binary": "the shares of the classes",
    "multiclass": "the shares of the classes",
    "multilabel": "the share of each class",
    "number": "the mean",
    "count": "a constant rate",
    "ranking": "no order",
    "vector": "the mean vector",
}
_MANY_ROWS, _SOME_ROWS = 1_000, 200  # held-out rows that calibration can be judged by, strictly and roughly
_HELD_OUT = 0.2
_MANY_DAYS = 20  # so that whole days can be held out


def pages(draft: Draft) -> dict[str, str]:
    """Text of each file of the project, by its path in the project's folder."""
    package, declared = draft.package, is_declared(draft)
    return {
        "pyproject.toml": _pyproject(draft),
        "README.md": readme(draft),
        f"{package}/__init__.py": _package(draft),
        f"{package}/features.py": _features(draft),
        f"{package}/model.py": _model(draft),
        f"{package}/load.py": declared_load_page(draft) if declared else load_page(draft),
        f"tests/test_{package}.py": declared_test_page(draft) if declared else _test(draft),
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
    roles, declared = draft.roles, is_declared(draft)
    keys = ", ".join(f'Field("{name}", {key_type(draft, name)})' for name in roles.keys)
    names, schema = _features_of(draft)
    names |= {"BatchSource", reader_name(draft), label_type(draft)} if declared else set()
    source = f"FIELDS = {schema}\n\n{source_declaration(draft)}\n" if declared else "\n"
    given = "schema=FIELDS, events=source" if declared else f"schema={schema}"
    return f'''\
"""Features of {draft.name}, and what they are features of."""

from toque.featurestore import {", ".join(sorted(names))}

{_names("NUMERIC", draft.checked.numeric)}
{_names("CATEGORICAL", draft.checked.categorical)}
{source}entity = Entity("{roles.keys[0]}", join_keys=[{keys}])
view = FeatureView("{draft.package}", entities=[entity], {given})
service = FeatureService("{draft.package}", [view])

FEATURES = [entity, view, service]
'''


def _features_of(draft: Draft) -> tuple[set[str], str]:
    """Names that the module of features imports, and its list of fields."""
    kinds = (
        ("NUMERIC", "Float64", draft.checked.numeric),
        ("CATEGORICAL", "String", draft.checked.categorical),
    )
    used = [(constant, kind) for constant, kind, columns in kinds if columns]
    names = {"Entity", "FeatureService", "FeatureView", "Field", *(kind for _, kind in used)}
    names |= {key_type(draft, name) for name in draft.roles.keys}
    fields = [f"*(Field(name, {kind}) for name in {constant})" for constant, kind in used]
    return names, f"[{', '.join(fields)}]"


def _model(draft: Draft) -> str:
    roles = draft.roles
    network = roles.outcome in BY_NETWORK
    used = "TabularParams" if network else "XGBoost"
    says = [] if network else [f'    outcome="{roles.outcome}",']
    says += [f'    group="{roles.group}",'] if roles.group else []
    says += ["    numeric=tuple(NUMERIC),", "    categorical=tuple(CATEGORICAL),", f"    {_trainer(draft)},"]
    retraining = (
        ""
        if roles.time
        else "    retraining=None,  # without times no rows are newer: `toque train` retrains by hand\n"
    )
    return f'''\
"""The model of {draft.name}: what it predicts, how it learns, and what it must show before it is served."""

from toque.functions.evaluation import Gate
from toque.functions.monitoring import DriftMonitor, PerformanceMonitor, QualityMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import {used}
from toque.registry import ModelPolicy
from {draft.package}.features import CATEGORICAL, NUMERIC, service

# It must beat {_REFERENCES[roles.outcome]} by 5 %, on rows it has not seen; "linear" would name a linear model.
gate = {_gate(draft)}
model = ModelDefinition(
    name="{draft.name}",
    service=service.name,
    entities="{draft.package}/entities",
    label="{roles.label}",
{chr(10).join(says)}
    gate=gate,
    monitors=(PerformanceMonitor(), DriftMonitor(), QualityMonitor()),
{retraining}    # You alone decide: with colleagues, ask for approvals (docs/governance.md).
    governance=ModelPolicy(guarded=frozenset({{"champion"}}), approvals=0, gates=("offline",)),
)
MODELS = [model]
'''


def _trainer(draft: Draft) -> str:
    """Declare the trainer: the tabular network where it learns the outcome, else XGBoost, which learns all."""
    split = "days" if draft.days >= _MANY_DAYS else "random"
    task = BY_NETWORK.get(draft.roles.outcome)
    return (
        f'training=TabularParams(task="{task}", split="{split}")'
        if task
        else f'trainer=XGBoost(split="{split}")'
    )


def _gate(draft: Draft) -> str:
    """Declare the gate, with a limit on calibration where the rows held out can show it."""
    roles = draft.roles
    judged = draft.found[roles.group].distinct if roles.group else draft.found[roles.label].rows
    rows = round(_HELD_OUT * judged)
    strict = "0.1" if rows >= _MANY_ROWS else "0.2"
    calibration = strict if roles.outcome in CLASSIFIED and rows >= _SOME_ROWS else "None"
    return f'Gate(max_log_loss_ratio={{"constant": 0.95}}, max_ece={calibration}, min_rows={min(200, max(10, rows // 2))})'


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


_AGAIN = """ The file is a declared source: lines that are added to it are loaded by
`toque run refresh_features`, or by the next `toque train`, each once; `toque sources` shows the loads."""


def readme(draft: Draft) -> str:
    """Text of the project's README."""
    roles, checked = draft.roles, draft.checked
    guesses = "\n".join(f"| {each.role} | {each.value} | {each.reason} |" for each in roles.guesses)
    found = "\n".join(f"- {each}" for each in checked.findings) or "- nothing odd"
    return f"""\
# {draft.name}

A model of `{roles.label}` from `{draft.source.name}` ({draft.found.rows:,} rows), made by `toque init`.

```bash
toque train              # loads the rows, trains, judges on rows that it has not seen
toque up                 # serves it on this machine; `toque down` ends it
toque models promote {draft.name} 1     # or `toque train --promote`
toque predict {draft.name} --example    # asks it by the values of its first row
toque run materialize    # puts the features online, so that it can be asked by key: --entities
toque monitor label ID VALUE     # says later what was true, by the id of the answer
toque monitor status {draft.name}
toque models show {draft.name}
python -m pytest         # checks the rows
```

| role | is | because |
|---|---|---|
{guesses}

Features: {len(checked.numeric)} numbers and {len(checked.categorical)} categories, named in `{draft.package}/features.py`.
What the model predicts, and what it must show before it is served, stands in `{draft.package}/model.py`; how the rows are read, in
`{draft.package}/{"features.py" if is_declared(draft) else "load.py"}`.{_AGAIN if is_declared(draft) else ""}

## What was found in the table

{found}
"""


def write_project(folder: Path, files: Mapping[str, str]) -> None:
    """Write files, by their paths in it, to a folder that does not exist yet.

    Killed at any point, it leaves no folder of the project's name. Raises: InitError if the folder exists, or its parent
    cannot be written to.
    """
    check_absent(folder)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise InitError(
            f"{folder.parent} cannot be written to: {error.strerror}; go to another folder"
        ) from error
    try:
        for name, text in files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        made.chmod(0o777 & ~_umask())
        made.rename(folder)  # refuses a folder with something in it
    except OSError as error:
        raise InitError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_absent(folder: Path) -> None:
    """Raises: InitError if there is something at the folder's path already."""
    if os.path.lexists(folder):
        raise InitError(f"{folder} exists; take another name, or remove it")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
