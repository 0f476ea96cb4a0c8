"""The predictor's HTTP endpoint: limits, authentication, and the routes of one model."""
