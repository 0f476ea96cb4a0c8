"""Old module paths that cluster files of the previous release name, and the paths that replace them."""

from registry.renamed import install

install(
    {
        "ray_apps.predictor.middleware": "ray_apps.predictor.http.bypass",
        "ray_apps.predictor.rpc": "ray_apps.predictor.grpc",
    }
)
