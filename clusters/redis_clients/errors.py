"""Error of a Redis url that can never work."""


class InvalidRedisUrl(ValueError):  # noqa: N818 - says what happened, as in toque.registry.errors
    """A part of the url of Redis cannot be used; the message names the part, its value and what to write instead."""
