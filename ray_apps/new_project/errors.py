"""Errors of making a project by `toque init`."""


class InitError(Exception):
    """A project that cannot be made; the message says what is wrong and what to do."""
