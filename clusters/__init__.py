"""Where Toque runs: files for `ray up` and for KubeRay. Configuration, no code."""
