"""How a predictor is deployed: on Serve, in a pool, by version, or standalone without Ray."""
