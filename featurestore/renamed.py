"""Module paths of the feature store in the release before, and the ones that replace them."""

from registry.renamed import install, moved

RENAMED = (
    moved(
        "featurestore",
        "featurestore.definitions",
        "definitions=views fields dtypes expectations ondemand=on_demand code encoding",
    )
    | moved(
        "featurestore.definitions",
        "featurestore.definitions",
        "composites=casting.composites tails=encoding.tails",
    )
    | moved(
        "featurestore",
        "featurestore.applied",
        "applied=definitions catalogue=catalog planning=plan revive=deserialize",
    )
    | moved("featurestore", "featurestore.windows", "aggregations windowing running latest distinct")
    | moved(
        "featurestore",
        "featurestore.offline",
        "offline=tables pointintime=point_in_time historical distributed asked=prefilter parts=partitioning",
    )
    | moved(
        "featurestore",
        "featurestore.online",
        "online=redis_store onlinekeys=keys held=connections joint=coalesced_reads serving materialize",
    )
)

install(RENAMED)
