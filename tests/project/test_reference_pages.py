"""The reference of functions is what the code declares."""

from tests.project.reference_pages import FOLDER, pages


def test_the_reference_is_what_the_code_declares() -> None:
    written = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    assert written == pages(), "run `python -m tests.project.reference_pages`"
