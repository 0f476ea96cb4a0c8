"""Will a flight from New York arrive more than fifteen minutes late? Asked an hour before it should leave.

A whole project of a user: `FEATURES` and `MODELS` are what the platform needs to know (`TOQUE_PROJECT=examples.flights`),
`prep` fills the feature tables, `replay` lives through a season, `demo` does all of it in one go. To use other data, copy
this folder and change the definitions; docs/your-own-data.md goes through it.
"""

from examples.flights.features import FEATURES
from examples.flights.model import MODELS

__all__ = ["FEATURES", "MODELS"]
