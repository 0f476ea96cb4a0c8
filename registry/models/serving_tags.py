"""The tags of a version that change how it is served: signed with its files, and frozen once it is approved.

Serving reads a version's tags through `serving_tags`, so that a tag which is not listed here can have no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SERVING_TAGS: Final = frozenset(
    {
        "feature_service",  # where the values of keys are looked up
        "missing_features",
        "missing_defaults",
        "max_batch_rows",
        "max_batch_wait_ms",
    }
)


def serving_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Select the tags that change how a version is served."""
    return {tag: value for tag, value in tags.items() if tag in SERVING_TAGS}
