"""Refusals of the predictor: each has an HTTP status, and a message that names the field."""

# ruff: noqa: N818 - these are answers, named as the registry names its own

from __future__ import annotations

from collections.abc import Iterable

from toque.clusters.did_you_mean import did_you_mean

__all__ = [
    "BadRequest",
    "CallerGone",
    "DeadlineExceeded",
    "Denied",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "NotFound",
    "NotLogged",
    "NotReady",
    "Overloaded",
    "PredictorError",
    "TooLarge",
    "unknown_name",
]


class PredictorError(Exception):
    """A refusal with an HTTP `status`; the message names the field, the value and the remedy."""

    status = 400


class BadRequest(PredictorError):
    """The request cannot be understood: 400."""


def unknown_name(where: str, name: str, names: Iterable[str], *, heading: str = "known are") -> BadRequest:
    """Make the error for a name that stands for nothing, with the nearest of those that do; heading: goes before them."""
    choices = sorted(names)
    more = f" and {len(choices) - _SHOWN} more" if len(choices) > _SHOWN else ""
    return BadRequest(
        f"{where}.{name[:80]}: no such name; {did_you_mean(name, choices)}{heading} {choices[:_SHOWN]}{more}"
    )


_SHOWN = 12  # names that an error lists


class NotFound(PredictorError):
    """The model or version is not served here: 404."""

    status = 404


class TooLarge(PredictorError):
    """The body or a tensor is larger than this deployment accepts: 413."""

    status = 413


class Denied(PredictorError):
    """The request has no valid token (401), or one whose role is too low (403)."""

    def __init__(self, message: str, *, status: int = 401) -> None:
        super().__init__(message)
        self.status = status


class NotReady(PredictorError):
    """No version can answer yet: 503, try again."""

    status = 503


class NotLogged(PredictorError):
    """The answer could not be logged as the mode of the log demands: 503, try again."""

    status = 503


class Overloaded(PredictorError):
    """More requests are in flight than the deployment's bound: 429, try again after a moment."""

    status = 429


class DeadlineExceeded(PredictorError):
    """The caller's deadline passed before the answer was there: 504."""

    status = 504


class CallerGone(PredictorError):
    """The caller hung up before the answer was there: 499, the status that web servers log for it."""

    status = 499


class DeviceOutOfMemory(PredictorError):
    """The CUDA device's memory does not suffice for this request: 503; others are answered."""

    status = 503


class DeviceFailed(PredictorError):
    """The CUDA device does no more work for this process: 503, until another replica answers."""

    status = 503
