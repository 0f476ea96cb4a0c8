"""What a rollout refuses, and why."""


class RolloutError(ValueError):
    """Base of the refusals of `functions.rollout`."""


class RolloutActive(RolloutError):  # noqa: N818 — a state of the world, as `AlreadyExists` is
    """A model has at most one rollout at a time."""


class NoRollout(RolloutError):  # noqa: N818 — the same
    """The model has no rollout that this could apply to."""
