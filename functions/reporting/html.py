"""HTML of reports: one self-contained file by a template, with the console's style sheet and charts, all escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from toque.functions.pages import make_templates
from toque.registry import ObjectStore

_TEMPLATES: Final = make_templates(Path(__file__).with_name("templates"))


def render(template: str, **values: Any) -> str:
    """Render a report by its template as one HTML file.

    values: what the template names; `link`, to the console's page of the same, may be left out.
    """
    return _TEMPLATES.get_template(template).render({"link": None, **values})


def write_page(store: ObjectStore, key: str, page: str) -> None:
    """Store a report under its key, and announce it to whoever looks at the list of reports."""
    store.put(key, page.encode())
    store.announce(key)
