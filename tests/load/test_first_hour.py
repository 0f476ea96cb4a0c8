"""Public tables go from a file to a live version within fifteen lines and ten minutes each."""

from pathlib import Path

import pytest

from toque.load.benchmarks.platform.first_hour import FIVE, TABLES, UNSEEN, first_hour


def test_five_tables_and_three_that_were_not_looked_at_are_measured():
    assert {*FIVE, *UNSEEN} == set(TABLES)
    assert (len(FIVE), len(UNSEEN)) == (5, 3)


@pytest.mark.proof
@pytest.mark.timeout(700)
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_live_within_the_lines_and_the_time(name: str, tmp_path: Path) -> None:
    done = first_hour(name, tmp_path, serve=False)
    assert done.good, done
