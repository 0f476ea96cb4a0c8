"""Drawing of a version's lineage, from its data by the run to what it serves, as SVG made on the server."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from toque.ray_apps.console.page import Page

_WIDTH, _HEIGHT = 188, 46  # of a box
_GAP, _ROW = 28, 60  # five columns, of which a served version has no more, fit the page in a window of 1,280
_CHARS: Final = 24
_TEXT_WIDTH: Final = _WIDTH - 24
_NODE = Markup(
    '<g class="node {kind}"><title>{title}</title><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    '<text class="above" x="{text_x}" y="{above_y}">{above}</text>'
    '<text x="{text_x}" y="{name_y}"{fit}>{name}</text></g>'
)
_SVG = Markup(
    '<svg class="graph" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="group" aria-label="{label}">'
)
# The browser presses a long name into its box, whose letters may be wide, as a run's id has them.
_FIT = Markup(' textLength="{}" lengthAdjust="spacingAndGlyphs"').format(_TEXT_WIDTH)
_CHARS_OF_ANY_WIDTH: Final = 20
_EDGE = Markup('<path class="edge" d="M{x0} {y0} C{x1} {y0} {x1} {y1} {x2} {y1}"/>')


@dataclass(frozen=True, slots=True)
class Node:
    """Box of a drawing: a small line of what it is above its name.

    link: where it leads, empty: nowhere. is_root: nothing of the column before was used for it, so no line leads to it.
    """

    above: str
    name: str
    kind: str = ""
    link: str = ""
    is_root: bool = False


def draw_lineage(
    version: dict[str, Any],
    aliases: list[str],
    arms: list[dict[str, Any]],
    page: Page,
    *,
    run_is_known: bool = False,
) -> Markup:
    """Draw the tables and feature views that a version was made from, its run, where it answers now, and its predictions."""
    model, lineage = version["model"], version["lineage"]
    data = [Node("table", f"{each['name']}@{each['version']}") for each in lineage["datasets"]]
    views = [Node("feature view", name, link=page.link("features", name)) for name in lineage["features"]]
    to_run = page.link("runs", lineage["run"]) if run_is_known else ""
    made = [Node("run", lineage["run"], link=to_run)] if lineage["run"] else []
    origins = [Node("code", lineage["code"][:12], is_root=True)] if lineage["code"] else []
    if lineage["parent"]:
        link = page.link("models", model, "versions", lineage["parent"])
        origins.append(Node("parent", f"version {lineage['parent']}", link=link, is_root=True))
    columns = [data + views, made + origins] if made else [data + views + origins]
    used = [Node("alias", alias, "live", page.link("models", model)) for alias in aliases]
    to_traffic = page.link("traffic", model)
    used += [
        Node("traffic", f"{arm['name']}, {100 * arm['share']:.4g} %", "live", to_traffic) for arm in arms
    ]
    answers = page.link("predictions", model=model, version=version["version"])
    logged = [Node("predictions", "of this version", link=answers)] if used else []
    own = [Node("version", f"{model}@{version['version']}", "own")]
    columns = [column for column in (*columns, own, used, logged) if column]
    return draw_columns(columns, label=f"Lineage of {model}@{version['version']}")


def draw_columns(columns: list[list[Node]], *, label: str) -> Markup:
    """Draw boxes in columns, each box joined to every box of the next column that is no root."""
    rows = max(len(column) for column in columns)
    width = len(columns) * (_WIDTH + _GAP) - _GAP + 2
    height = rows * _ROW - (_ROW - _HEIGHT) + 2
    places = [
        [(1 + i * (_WIDTH + _GAP), 1 + (j + (rows - len(column)) / 2) * _ROW) for j in range(len(column))]
        for i, column in enumerate(columns)
    ]
    ends = [
        [place for node, place in zip(column, spots, strict=True) if not node.is_root]
        for column, spots in zip(columns, places, strict=True)
    ]
    edges = [
        _edge(start, end)
        for left, right in pairwise(zip(places, ends, strict=True))
        for start in left[0]
        for end in right[1]
    ]
    boxes = [
        _box(node, *place)
        for column, spots in zip(columns, places, strict=True)
        for node, place in zip(column, spots, strict=True)
    ]
    head = _SVG.format(width=width, height=f"{height:g}", label=label)
    return head + Markup().join(edges + boxes) + Markup("</svg>")


def _edge(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    x0, x2 = start[0] + _WIDTH, end[0]
    y0, y1 = start[1] + _HEIGHT / 2, end[1] + _HEIGHT / 2
    return _EDGE.format(x0=x0, y0=f"{y0:g}", x1=f"{(x0 + x2) / 2:g}", y1=f"{y1:g}", x2=x2)


def _box(node: Node, x: float, y: float) -> Markup:
    shown = node.name if len(node.name) <= _CHARS else f"{node.name[: _CHARS - 1]}…"
    drawn = _NODE.format(
        kind=node.kind,
        title=f"{node.above} {node.name}",
        x=x,
        y=f"{y:g}",
        width=_WIDTH,
        height=_HEIGHT,
        text_x=x + 12,
        above=node.above,
        above_y=f"{y + 17:g}",
        name=shown,
        name_y=f"{y + 35:g}",
        fit=_FIT if len(shown) > _CHARS_OF_ANY_WIDTH else "",
    )
    return Markup('<a href="{}">{}</a>').format(node.link, drawn) if node.link else drawn
