"""Tables of docs/outcomes.md: `python -m tests.project.outcomes_page` writes them anew from `MEANINGS`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from toque.functions.evaluation.meanings import MEANINGS, Aspect

PAGE = Path(__file__).parents[2] / "docs" / "outcomes.md"
BEGIN, END = "<!-- outcomes: written by tests/project/outcomes_page.py -->", "<!-- end of outcomes -->"


def page_with_tables(text: str) -> str:
    """The page with its tables as the code has them."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{_outcomes()}\n{_settings()}{END}{after}"


def _outcomes() -> str:
    rows = [
        f"| `{name}` | {each.label} | {each.answer} | {', '.join(f'`{loss}`' for loss in each.losses)} | {each.bounded} "
        f"| {', '.join(f'`{metric}`' for metric in each.metrics)} | {each.baselines} |\n"
        for name, each in MEANINGS.items()
    ]
    head = "| outcome | label | answer | loss in rollouts and monitors | bounded by | metrics of a gate | baselines |\n"
    return head + "|---|---|---|---|---|---|---|\n" + "".join(rows)


def _settings() -> str:
    rows = [
        f"| `{aspect}` | {' | '.join('refused' if aspect in each.refused else 'yes' for each in MEANINGS.values())} |\n"
        for aspect in get_args(Aspect)
    ]
    rows.append(f'| `gate.fairness` by `measure="loss"` | {" | ".join(["yes"] * len(MEANINGS))} |\n')
    head = f"| setting | {' | '.join(MEANINGS)} |\n|---|{'---|' * len(MEANINGS)}\n"
    return head + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text()))
