"""Evidently's page of what is served beside what was learnt."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pytest

from tests.functions.monitoring.conftest import MODEL, served  # noqa: F401 - a fixture
from toque.functions.monitoring.logged_features import FeatureColumns
from toque.functions.reporting import evidently_report
from toque.functions.reporting.evidently_page import _escaped, _page
from toque.functions.runtime import use_context


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of litestar, as evidently uses it
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of scipy, on a category that one side never saw
def test_a_value_that_a_caller_chose_stays_data_in_the_page():
    values = {"seen": ["ab", "cd"] * 30, "sent": ["</script><script>alert(1)</script>", "<!--<script>"] * 30}
    seen, sent = (pa.table({"city": column}) for column in values.values())
    page = _page(seen, sent, FeatureColumns((), ("city",)))
    assert "<script>alert(1)" not in page
    assert "<!--<script>" not in page
    escaped = values["sent"][0].replace("<", r"\u003c").replace(">", r"\u003e")
    assert escaped in page


def test_a_page_of_another_build_is_refused_rather_than_left_unescaped():
    with pytest.raises(RuntimeError, match=r"pin evidently<0\.8"):
        _escaped('<html><script>var data = "</script>"</script><body></body></html>')
