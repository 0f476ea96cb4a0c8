"""What a slice counts as, by the type of its GPU, and what may be asked for."""

import pytest

from toque.functions import Demand
from toque.functions.runtime.cards import Node, is_slice, share_of
from toque.functions.runtime.errors import DeclarationError
from toque.functions.training.errors import TrainingError
from toque.functions.training.request import Workers


@pytest.mark.parametrize(
    ("card", "share"),
    [
        (None, 1.0),
        ("H100", 1.0),
        ("RTX-PRO-6000", 1.0),
        ("GB200", 1.0),
        ("H100-1g.10gb", 1 / 7),
        ("A100-3g.20gb", 3 / 7),
        ("H100-1g.10gb.me", 1 / 7),
        ("7g.80gb", 1.0),
    ],
)
def test_a_slice_counts_as_its_part_of_a_card(card: str | None, share: float) -> None:
    assert share_of(card) == share
    assert is_slice(card) == (card is not None and "g." in card)


def test_a_node_of_slices_has_each_of_them_as_a_unit() -> None:
    assert Node("a", 2, "H100").units == (1.0, 1.0)
    assert Node("a", 7 * share_of("H100-1g.10gb"), "H100-1g.10gb").units == (1 / 7,) * 7
    assert Node("a", 2 * share_of("H100-3g.40gb"), "H100-3g.40gb").units == (3 / 7,) * 2


def test_slices_that_would_work_together_and_cards_and_a_half_are_refused() -> None:
    assert Demand(gpus=1, workers=1, card="H100-1g.10gb").gpus == 1
    for gpus, workers in ((2, 2), (2, 1), (1, None)):
        with pytest.raises(DeclarationError, match=r"card='H100-1g.10gb' .* cannot work together; ask for"):
            Demand(gpus=gpus, workers=workers, card="H100-1g.10gb")
    assert Demand(gpus=1.5, workers=3).gpus == 1.5
    with pytest.raises(DeclarationError, match=r"gpus=3 of workers=2: 1.5 for each; ask for whole GPUs"):
        Demand(gpus=3, workers=2)
    with pytest.raises(
        TrainingError, match=r"card='H100-1g.10gb' with num_workers=2: .* ask for num_workers=1"
    ):
        Workers(2, 1.0, 1.0, card="H100-1g.10gb")
