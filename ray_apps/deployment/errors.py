"""Errors of bringing the platform up on a cluster."""


class DeploymentError(Exception):
    """Raised if a node or the platform cannot be brought up; the message says what to do."""
