"""Config files of Ray Serve for `serve deploy`, and the builders that they name.

`serve deploy ray_apps/config/serve.yaml` on a running cluster does what `toque up` does on one machine. The
cluster's processes need the platform's variables (`TOQUE_STORE`, `TOQUE_REDIS_URL`, `TOQUE_PROJECT`) and Serve's
(`RAY_SERVE_ENABLE_HA_PROXY`, `RAY_SERVE_THROUGHPUT_OPTIMIZED`) when they start.
"""
