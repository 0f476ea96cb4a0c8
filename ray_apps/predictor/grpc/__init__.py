"""Serves GRPCInferenceService, Triton's and KServe's, on one port for the models of all HTTP endpoints.

A call's token is checked before its message is read. The message is forwarded to the model's own endpoint, over HTTP
or in the same process, which limits, predicts and logs. This package knows nothing of versions, traffic or the
registry.
"""

from toque.ray_apps.predictor.grpc.call import Limits
from toque.ray_apps.predictor.grpc.deployment import (
    GRPC_APP,
    GrpcServer,
    HttpModels,
    ProxyOptions,
    grpc_application,
)

__all__ = ["GRPC_APP", "GrpcServer", "HttpModels", "Limits", "ProxyOptions", "grpc_application"]
