"""The model server: the Open Inference Protocol v2 over the versions of the registry.

Each model is a Serve application of its own under `/v2/models/{name}`. Its replicas follow the model's traffic
policy, load what it names beside the traffic, and log every answer before it leaves.
"""

from ray_apps.predictor.deployment import app_name, application, build_predictor, deploy_model, route_prefix
from ray_apps.predictor.options import PredictorOptions

__all__ = ["PredictorOptions", "app_name", "application", "build_predictor", "deploy_model", "route_prefix"]
