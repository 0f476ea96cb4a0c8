"""Training sets of a whole store against an oracle written from the definition in words, case by case.

Over Ray Data the same cases are in `test_distributed.py`.
"""

from pathlib import Path

import pytest

from tests.featurestore.oracle import Cases, features_of, store_of


@pytest.fixture(scope="module")
def cases() -> Cases:
    return Cases()


@pytest.mark.parametrize("mode", ["as_stored", "as_known"])
@pytest.mark.parametrize(("files", "blocks", "seed"), [(1, 1, 0), (7, 5, 1), (3, 97, 2)])
def test_every_entity_row_matches_the_definition(
    cases: Cases, tmp_path: Path, files: int, blocks: int, seed: int, mode: str
) -> None:
    fs = store_of(cases, tmp_path, files=files, seed=seed)
    entities = cases.entity_table(blocks)
    out = fs.get_historical_features(entities, "all", as_known=mode == "as_known").to_arrow()
    assert out.select(entities.column_names).to_pylist() == entities.to_pylist()
    assert features_of(out) == cases.expected[mode == "as_known"]
