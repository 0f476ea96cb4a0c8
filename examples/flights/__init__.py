"""Example project that predicts, an hour before departure, whether a flight from New York will arrive late.

The folder is a whole project of a user: the platform needs its `FEATURES` and `MODELS` (`TOQUE_PROJECT=examples.flights`);
`prep` fills the feature tables, `replay` replays a season of requests, `demo` runs all of it. To use other data, copy this
folder and change the definitions, as docs/your-own-data.md describes.
"""

from examples.flights.features import FEATURES
from examples.flights.model import MODELS

__all__ = ["FEATURES", "MODELS"]
