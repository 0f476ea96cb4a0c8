"""README of a new project: what was guessed, what to do next, and where to change it."""

from __future__ import annotations

from toque.ray_apps.new_project.declared_page import is_declared
from toque.ray_apps.new_project.draft import Draft

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
toque label ID VALUE     # says later what was true, by the id of the answer
toque monitors {draft.name}
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
