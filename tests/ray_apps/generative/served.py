"""The door of language models as a Serve application behind HAProxy, on a port; prints `ready`, and ends by a signal.

The store is that of the environment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from ray_apps.predictor.__main__ import SERVE_ENVIRONMENT, _cluster, _haproxy_folder


def main() -> None:
    """Serve until a signal."""
    stop = threading.Event()
    with _haproxy_folder(), _cluster(2):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        from ray import serve  # late: Serve's settings must be in the environment first

        from ray_apps.config.builders import generative
        from ray_apps.generative.options import APP, ROUTE_PREFIX

        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        options = {"options": {"num_cpus": 0, "engine_threads": 1}}
        serve.run(generative(options), name=APP, route_prefix=ROUTE_PREFIX)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        stop.wait()


if __name__ == "__main__":
    os.environ.update(SERVE_ENVIRONMENT)
    main()
