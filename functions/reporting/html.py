"""HTML parts of the pages: a self-contained document, tables and figures, all escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toque.registry import ObjectStore

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FIGURE = 'class="plotly-graph-div"'  # in no text of ours: quotes are escaped there
_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #eee; vertical-align: top; }
td:first-child { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85em; overflow-wrap: anywhere; } .said { background: #f5f7f6; padding: .6rem 1rem; }
"""


def document(title: str, summary: Sequence[str], sections: Sequence[tuple[str, str]]) -> str:
    """Assemble the whole HTML page.

    summary: sentences at the top; sections: headings, and contents that are HTML already. Texts are escaped here.
    """
    sentences = "".join(f"<p>{_text(line)}</p>" for line in summary)
    body = "".join(f"<h2>{_text(heading)}</h2>{content}" for heading, content in sections)
    script = f"<script>{_plotly_script()}</script>" if _FIGURE in body else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style>{script}</head>"
        f'<body><h1>{_text(title)}</h1><div class="said">{sentences}</div>{body}</body></html>'
    )


def linked(page: str, address: str | None) -> str:
    """Put a link to the console's page of the same under the title of a document; without an address it stays as it is."""
    if address is None:
        return page
    link = f'<p><a href="{html.escape(address)}">In the console</a></p>'
    return page.replace("</h1>", f"</h1>{link}", 1)


def new_figure() -> go.Figure:
    """Make an empty figure, which `figure_html` renders.

    Raises: RuntimeError if plotly is not installed.
    """
    try:
        import plotly.graph_objects as go  # late: the extra `plots`, and slow to import
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "a page with figures needs plotly; install it where functions run: pip install 'toque[plots]'"
        ) from error
    return go.Figure()


def figure_html(figure: go.Figure, axis: str) -> str:
    """Render a figure as HTML. axis: what its vertical axis shows, with units."""
    figure.update_layout(
        height=360,
        margin={"l": 50, "r": 20, "t": 30, "b": 70},
        template="plotly_white",
        legend={"orientation": "h", "y": -0.2},  # below the plot: the marks of events stand above
        yaxis_title=axis,
        hovermode="x",
    )
    quiet = {"displayModeBar": False}  # its buttons would hide the marks
    html_text: str = figure.to_html(full_html=False, include_plotlyjs=False, config=quiet)
    return html_text


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, numbers_from: int | None = None) -> str:
    """Render a table of texts. numbers_from: the first column of numbers, which are right-aligned."""
    if not rows:
        return "<p>Nothing yet.</p>"

    def cells(tag: str, values: Sequence[object]) -> str:
        numeric = len(values) if numbers_from is None else numbers_from
        styles = ["" if index < numeric else ' class="number"' for index in range(len(values))]
        return "".join(
            f"<{tag}{style}>{_text(value)}</{tag}>" for style, value in zip(styles, values, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', header)}</tr>{body}</table>"


def json_for_script(value: str) -> str:
    """Escape JSON so that it stays data inside an HTML `<script>`, whatever texts it holds.

    value: JSON text. `<`, `>`, `&` and the line separators stand only inside its strings, where an escape means the same.
    """
    return value.translate(_IN_SCRIPT)


def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs  # late: 4.5 MB of text, which only a page with a figure needs

    script: str = get_plotlyjs()
    return script


def _text(value: object) -> str:
    return html.escape(str(value))


def write_page(store: ObjectStore, key: str, page: str) -> None:
    """Store a report under its key, and announce it to whoever looks at the list of reports."""
    store.put(key, page.encode())
    store.announce(key)
