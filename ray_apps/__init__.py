"""Applications of a cluster: predictor, gateway, MLflow's protocol, ticker, and the commands that start them.

This package may use every package below it. It must stay light to import: processes that start Ray import it before Ray.
"""
