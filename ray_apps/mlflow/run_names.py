"""Names for runs that are begun without one, as MLflow's own server makes them up, so that people can tell them apart."""

from __future__ import annotations

import secrets
from typing import Final

__all__ = ["made_up_name"]

_ADJECTIVES: Final = (
    "able", "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "crisp", "eager", "early", "fair", "fond",
    "frank", "fresh", "gentle", "glad", "golden", "grand", "happy", "honest", "keen", "kind", "lively", "loyal", "lucky", "merry",
    "mild", "neat", "noble", "patient", "plain", "polite", "proud", "quick", "quiet", "rare", "ready", "sharp", "silent", "smooth",
    "sober", "steady", "sunny", "swift", "tidy", "warm", "wise", "witty",
)  # fmt: skip
_NOUNS: Final = (
    "badger", "bear", "bee", "bison", "crane", "crow", "deer", "dove", "duck", "eagle", "elk", "falcon", "finch", "fox", "frog",
    "goat", "goose", "hare", "hawk", "heron", "horse", "ibex", "jay", "kite", "lark", "lion", "lynx", "marten", "mole", "moose",
    "mouse", "newt", "otter", "owl", "pike", "quail", "raven", "robin", "seal", "shrew", "snail", "sole", "stork", "swan", "swift",
    "tern", "toad", "trout", "wolf", "wren",
)  # fmt: skip
_NUMBERS: Final = 1_000


def made_up_name() -> str:
    """Make a name such as `calm-heron-417`: one of 2.5 million."""
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{secrets.randbelow(_NUMBERS)}"
