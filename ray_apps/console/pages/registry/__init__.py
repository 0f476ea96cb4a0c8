"""Pages of the registry: models, their versions, their traffic and their rollouts."""
