"""Where Toque runs: files for `ray up` and KubeRay, and what every process shares: profile, clients of Redis, telemetry."""

if __name__ != "toque.clusters":  # under a second name, each class would be there twice
    raise ImportError(f"{__name__} is imported as toque.clusters")
