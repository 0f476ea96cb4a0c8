"""Example project that reads handwritten digits: an image classifier of scikit-learn under the platform's whole loop.

The images ship with scikit-learn. `loop` plays five weeks in one process: a sweep, the gate, daily answers and labels; then a new
scanner writes paler images, the monitors see it, and a challenger goes through shadow and canary to promotion.
"""

from examples.digits.model import FEATURES, MODELS

__all__ = ["FEATURES", "MODELS"]
