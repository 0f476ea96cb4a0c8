"""Where Toque runs: files for `ray up` and KubeRay, and what every process shares: profile, clients of Redis, telemetry."""
