"""Area under the ROC curve with its standard error."""

import numpy as np
import numpy.typing as npt

from toque.functions.stats.moments import as_floats

__all__ = ["auc_with_error"]


def auc_with_error(label: npt.ArrayLike, score: npt.ArrayLike) -> tuple[float, float] | None:
    """Compute how often a positive row ranks above a negative one, ties counting half, and its standard error.

    label: (n,) of 0 and 1; score: (n,). None where there are fewer than two rows of either label.
    Raises: ValueError if the lengths differ, or a value is not finite.
    Source: DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated ROC curves, 1988.
    """
    y, s = as_floats(label, "label"), as_floats(score, "score")
    if len(y) != len(s):
        raise ValueError(f"a label for each score is needed, got {len(y)} and {len(s)}")
    positive, negative = np.sort(s[y == 1]), np.sort(s[y != 1])
    if min(len(positive), len(negative)) < 2:  # noqa: PLR2004 - for a spread
        return None
    above = _share_below(negative, positive)  # of each positive: negatives below it
    below = 1.0 - _share_below(positive, negative)
    variance = above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative)
    return float(above.mean()), float(np.sqrt(variance))


def _share_below(sample: npt.NDArray[np.float64], of: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute for each value of `of` the share of the sorted sample below it, ties counting half."""
    left, right = (np.searchsorted(sample, of, side=side) for side in ("left", "right"))
    result: npt.NDArray[np.float64] = (left + right) / (2.0 * len(sample))
    return result
