from tests.featurestore.conftest import spare_redis

__all__ = ["spare_redis"]
