"""The gRPC door: the Open Inference Protocol's GRPCInferenceService, before the HTTP doors of all models.

One front on one port takes every call, finds the model by the name in the message, and passes the call on to the
HTTP door as a binary request: what admits, limits, predicts and logs stands in the replicas, once. The front knows
the two encodings and nothing of models, versions or the registry.
"""

from ray_apps.predictor.rpc.deployment import GRPC_APP, FrontOptions, grpc_application
from ray_apps.predictor.rpc.front import Front
from ray_apps.predictor.rpc.listener import Listener
from ray_apps.predictor.rpc.upstream import Upstream

__all__ = ["GRPC_APP", "Front", "FrontOptions", "Listener", "Upstream", "grpc_application"]
