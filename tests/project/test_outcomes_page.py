"""The page of outcomes shows what the code does."""

from tests.project.outcomes_page import PAGE, page_with_tables


def test_the_page_shows_the_outcomes_as_the_code_has_them() -> None:
    text = PAGE.read_text()
    assert text == page_with_tables(text), "run `python -m tests.project.outcomes_page`"
