"""Example project that tells from which package a description is: a text classifier of scikit-learn under the whole loop.

The texts are docstrings of installed packages. `loop` plays five weeks in one process: a sweep, the gate, daily answers and labels;
then people write short questions, the monitors see it, and a challenger goes through shadow and canary to promotion.
"""

from examples.texts.loop import FEATURES, MODELS

__all__ = ["FEATURES", "MODELS"]
