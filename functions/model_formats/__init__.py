"""Model files: which formats there are, how each is read safely, and how table rows become model inputs."""
