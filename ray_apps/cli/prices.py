"""The price list that commands count with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from toque.ray_apps.cli.errors import UsageError

if TYPE_CHECKING:
    from toque.functions.runtime.receipt import Prices


def find_prices() -> Prices | None:
    """Read the price list of the environment or the profile. Raises: UsageError."""
    from toque.functions.runtime.receipt import Prices  # late: a command imports what it needs

    text = os.environ.get("TOQUE_PRICES")
    try:
        return Prices.model_validate_json(text) if text else None
    except ValueError as error:
        raise UsageError(f"TOQUE_PRICES: {error}") from error
