"""Evidently's page of what is served beside what was learnt."""

from __future__ import annotations

import re
from typing import Any

import pytest

from functions.reporting import evidently_report
from functions.runtime import use_context
from tests.functions.monitoring.conftest import MODEL, diner  # noqa: F401 - the same diner


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of litestar, as evidently uses it
def test_the_page_is_of_a_sample_and_says_so(diner: Any) -> None:  # noqa: F811
    diner.register()
    diner.serve(3)
    with use_context(diner.context()):
        found = evidently_report(MODEL, max_rows=200)
    assert (found.rows_reference, found.rows_window, found.rows_logged) == (200, 200, 450)
    page = diner.store.get(found.key).decode()
    assert "200 requests beside 200 training rows, sampled" in page
    assert "wind" in page
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', page)


def test_too_little_to_draw_is_refused(diner: Any) -> None:  # noqa: F811
    with use_context(diner.context()):
        with pytest.raises(ValueError, match="no champion"):
            evidently_report(MODEL)
        diner.register()
        with pytest.raises(ValueError, match="0 requests to 'late'"):
            evidently_report(MODEL)
