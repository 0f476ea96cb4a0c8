"""Table of all series in docs/metrics.md: `python -m tests.project.metrics_page` writes it anew."""

from __future__ import annotations

from pathlib import Path

from toque.ray_apps.exporter import all_series

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- series: written by tests/project/metrics_page.py -->", "<!-- end of series -->"


def page_with_table(text: str) -> str:
    """The page with its table as the code has it."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{_table()}{END}{after}"


def _table() -> str:
    rows = [
        f"| `{each.name}{'_total' if each.kind == 'counter' else ''}` | {each.kind} "
        f"| {', '.join(f'`{label}`' for label in each.labels) or '–'} | {each.text} |\n"
        for each in all_series()
    ]
    return "| series | kind | labels | what |\n|---|---|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
