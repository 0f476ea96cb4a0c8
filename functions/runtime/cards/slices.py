"""Slices of cards (NVIDIA's MIG): a node whose cards are cut has them instead of cards, each a GPU of Ray's.

The type of such a node's GPUs names the card and the profile, as in `H100-1g.10gb`. Quotas, budgets and receipts count a slice
as the part of a card that it computes with; Ray counts it as one GPU.
"""

from __future__ import annotations

import re

SLICED = "toque/slices"
"""Label of a node whose GPUs are slices, so that who asks for any card gets a whole one."""
SLICED_VALUE = "yes"
_PROFILE = re.compile(r"(?:^|[-_])(?P<units>[1-7])g\.\d+gb(?:\.[a-z]+)*$")
_UNITS = 7  # of computing, in a card; the few with four (A30) count as if they had seven


def share_of(card: str | None) -> float:
    """Part of a card that one GPU of this type is: 1 of a whole card, or of any; 1/7 of `H100-1g.10gb`."""
    found = None if card is None else _PROFILE.search(card)
    return 1.0 if found is None else int(found["units"]) / _UNITS


def is_slice(card: str | None) -> bool:
    """Whether a type of GPUs is a slice of a card."""
    return card is not None and _PROFILE.search(card) is not None
