"""Errors of rollouts: what is refused, and why."""


class RolloutError(ValueError):
    """Base class of the errors of `toque.functions.rollout`."""


class RolloutActive(RolloutError):  # noqa: N818 — a state of the world, as `AlreadyExists` is
    """Raised where another rollout of the model is under way: a model has at most one at a time."""


class NoRollout(RolloutError):  # noqa: N818 — a state of the world, as `AlreadyExists` is
    """Raised where the model has no rollout that the call could apply to."""
