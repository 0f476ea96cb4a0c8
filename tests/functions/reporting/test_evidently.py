"""Evidently's page of what is served beside what was learnt."""

from __future__ import annotations

import re
from typing import Any

import pytest

from functions.reporting import evidently_report
from functions.runtime import use_context
from tests.functions.monitoring.conftest import MODEL, served  # noqa: F401 - a fixture


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of litestar, as evidently uses it
def test_the_page_is_of_a_sample_and_says_so(served: Any) -> None:  # noqa: F811
    served.register()
    served.serve(3)
    with use_context(served.context()):
        found = evidently_report(MODEL, max_rows=200)
    assert (found.rows_reference, found.rows_window, found.rows_logged) == (200, 200, 450)
    page = served.store.get(found.key).decode()
    assert "200 requests beside 200 training rows, sampled" in page
    assert "wind" in page
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', page)


def test_too_little_to_draw_is_refused(served: Any) -> None:  # noqa: F811
    with use_context(served.context()):
        with pytest.raises(ValueError, match="no champion"):
            evidently_report(MODEL)
        served.register()
        with pytest.raises(ValueError, match="0 requests to 'late'"):
            evidently_report(MODEL)
