"""Formats of model files: how each is read safely, and how table rows become model inputs."""
