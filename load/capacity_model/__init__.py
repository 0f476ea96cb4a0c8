"""Model of a cluster's shared parts under load: what each has to do, what it can do, and which reaches its limit first."""

from toque.load.capacity_model.model import Cluster, Costs, Demand, Part, parts, s3_price_a_month

__all__ = ["Cluster", "Costs", "Demand", "Part", "parts", "s3_price_a_month"]
