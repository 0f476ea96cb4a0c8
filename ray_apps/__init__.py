"""Applications of a cluster: predictor, gateway, MLflow's protocol, ticker, and the commands that start them.

This package may use every package below it. It must stay light to import: processes that start Ray import it before Ray.
"""

if __name__ != "toque.ray_apps":  # under a second name, each class would be there twice
    raise ImportError(f"{__name__} is imported as toque.ray_apps")
