"""Module paths that cluster files of the release before name, and the ones that replace them."""

from registry.renamed import install

install({"ray_apps.predictor.middleware": "ray_apps.predictor.http.bypass"})
