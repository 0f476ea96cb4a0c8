"""The parts of a change of loss."""

from __future__ import annotations

import numpy as np
import pytest

from toque.functions.stats.decompose import decompose_change

N = 4_000


def words(share_of_b: float) -> np.ndarray:
    return np.array(["a", "b"], dtype=object)[(np.arange(N) < share_of_b * N).astype(int)]


def test_a_change_of_mix_and_one_within_are_told_apart_by_hand() -> None:
    before, after = words(0.2), words(0.5)
    loss = {"a": 0.1, "b": 0.5}
    losses = [np.array([loss[word] for word in column]) for column in (before, after)]
    (mixed,) = decompose_change(*losses, {"w": before}, {"w": after})
    assert mixed.mix == pytest.approx((0.5 - 0.2) * 0.5 + (0.5 - 0.8) * 0.1)  # .12
    assert mixed.within == pytest.approx(0.0)
    worse = np.where(after == "b", 0.9, losses[1])
    (both,) = decompose_change(losses[0], worse, {"w": before}, {"w": after})
    assert both.mix == pytest.approx(0.12)
    assert both.within == pytest.approx(0.5 * (0.9 - 0.5))
    assert (both.cells[0].name, both.cells[0].contribution) == ("w = b", pytest.approx(0.2))


def test_the_parts_add_up_whatever_the_columns_hold() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(N)
    x[:50], x[50:60] = np.nan, np.inf
    y = rng.standard_normal(N) + 1
    kinds = {
        "x": (x, y),
        "constant": (np.ones(N), np.ones(N)),
        "null": (np.full(N, np.nan), np.full(N, np.nan)),
    }
    kinds["word"] = (rng.choice(["a", "b", None], N), rng.choice([f"w{n}" for n in range(90)], N))
    before, after = rng.random(N), rng.random(N) + 0.2
    found = decompose_change(
        before, after, {n: k[0] for n, k in kinds.items()}, {n: k[1] for n, k in kinds.items()}
    )
    for one in found:
        lost = sum(cell.contribution for cell in one.cells)
        assert one.mix + one.within == pytest.approx(after.mean() - before.mean())
        assert one.column == "word" or lost == pytest.approx(one.within)


def test_only_the_column_that_moved_is_beyond_chance() -> None:
    rng = np.random.default_rng(1)
    columns = [
        {f"c{n}": rng.standard_normal(N) + (0.5 if after and n == 3 else 0.0) for n in range(8)}
        for after in (0, 1)
    ]
    losses = [np.clip(0.5 + 0.2 * side["c3"] + 0.1 * rng.standard_normal(N), 0, None) for side in columns]
    found = decompose_change(*losses, *columns)
    assert found[0].column == "c3"
    assert found[0].mix > 4 * found[0].error
    # 7 columns of chance: beyond 4 standard errors once in 30,000
    assert all(abs(one.mix) < 4 * one.error for one in found[1:])


def test_too_few_rows_and_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="30 rows of each"):
        decompose_change(np.ones(29), np.ones(40), {}, {})
    with pytest.raises(ValueError, match=r"differ in \['y'\]"):
        decompose_change(np.ones(40), np.ones(40), {"x": np.ones(40)}, {"x": np.ones(40), "y": np.ones(40)})
