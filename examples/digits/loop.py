"""Five weeks of the digit reader in one process: `python -m examples.digits.loop`.

From one day on a new scanner writes the images paler and one pixel to the right.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from examples.digits.model import PIXELS, digit_model
from examples.loop import DAY, START, play
from toque.functions.tuning import Range, Space

NEW_SCANNER = 14  # the day on which it is first used
IMAGES_A_DAY = 150
SPACE: Space = {"c": Range(low=0.001, high=0.1, log=True, steps=3)}


def images(day: int) -> pa.Table:
    """Images of one day, drawn from the 1,797 of scikit-learn with noise of the paper; labels are known half a day later."""
    from sklearn.datasets import load_digits  # late: only what makes data needs it

    found = load_digits()
    generator = np.random.default_rng(day)
    chosen = generator.integers(0, len(found.images), IMAGES_A_DAY)
    pixels = found.images[chosen] + generator.normal(scale=1.0, size=(IMAGES_A_DAY, 8, 8))
    if day >= NEW_SCANNER:
        pixels = _scanned_anew(pixels)
    begin = START + day * DAY
    asked = [begin + DAY * (place + 0.5) / IMAGES_A_DAY for place in range(IMAGES_A_DAY)]
    columns = {name: pixels.reshape(IMAGES_A_DAY, -1)[:, place] for place, name in enumerate(PIXELS)}
    return pa.table(
        {
            "row_id": [f"{day}-{place}" for place in range(IMAGES_A_DAY)],
            "event_timestamp": asked,
            "label_known_at": [moment + DAY / 2 for moment in asked],
            "digit": found.target[chosen].astype(np.int64),
            **columns,
        }
    )


def _scanned_anew(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    moved = np.roll(pixels, 1, axis=2)
    moved[:, :, 0] = 0.0
    return 0.6 * moved


if __name__ == "__main__":
    play("examples.digits", digit_model, images, SPACE)
