"""Five weeks of the digit reader in one process: `python -m examples.digits.loop`."""

from __future__ import annotations

from examples.digits.data import images
from examples.digits.model import digit_model
from examples.loop import play
from toque.functions.tuning import Range, Space

SPACE: Space = {"c": Range(low=0.001, high=0.1, log=True, steps=3)}

if __name__ == "__main__":
    play("examples.digits", digit_model, images, SPACE)
