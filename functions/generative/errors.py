"""Error of the generative room."""

from __future__ import annotations


class GenerativeError(ValueError):
    """A prompt, a version's files or a request's variables are not what they must be; the message names the field."""
