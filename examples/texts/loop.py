"""Five weeks of the text classifier in one process: `python -m examples.texts.loop`."""

from __future__ import annotations

from examples.loop import play
from examples.texts.data import texts
from examples.texts.model import package_model
from toque.functions.tuning import Range, Space

SPACE: Space = {"c": Range(low=1.0, high=100.0, log=True, steps=3)}

if __name__ == "__main__":
    play("examples.texts", package_model, texts, SPACE)
