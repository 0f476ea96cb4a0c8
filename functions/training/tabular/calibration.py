"""Calibration of probabilities by temperature scaling: one factor, learnt on the validation rows.

There is deliberately no intercept. A network trained on log loss already has the base rate of its training rows; the
validation rows are a few days, whose own base rate is weather, and an intercept would learn that (on the flights of
January to June it cost 1.3 % of July's log loss).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

_STEPS = 50
_TOLERANCE = 1e-8
_RIDGE = 10.0  # pulls the factor towards 1 as some tens of rows would: few validation rows prove little


def fit_inverse_temperature(logits: Tensor, label: Tensor) -> float:
    """Find the factor on logits that lowers the log loss of `label` (rows,) most, by Newton's method.

    logits: (rows, classes), with labels that are class indices; or (rows,), with labels of 0 and 1.
    Returns: a positive factor; 1.0 where no factor is better, so the order of predictions never changes.
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    z, y = logits.double(), label.long()
    if z.ndim == 1:
        z = torch.stack([torch.zeros_like(z), z], dim=1)
    chosen = float(z.gather(1, y.unsqueeze(1)).sum())
    factor = 1.0
    for _ in range(_STEPS):
        p = torch.softmax(factor * z, dim=1)
        mean = (p * z).sum(dim=1, keepdim=True)
        gradient = float(mean.sum()) - chosen + _RIDGE * (factor - 1.0)
        curvature = float((p * (z - mean) ** 2).sum()) + _RIDGE
        step = max(-0.5, min(0.5, gradient / curvature))
        factor -= step
        if abs(step) < _TOLERANCE:
            break
    before, after = (float(cross_entropy(x, y)) for x in (z, factor * z))
    return factor if factor > 0 and after < before else 1.0
