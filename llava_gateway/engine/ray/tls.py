"""Deltas are encrypted where Ray's own connections are: by its variables RAY_USE_TLS and RAY_TLS_{SERVER_CERT,SERVER_KEY,CA_CERT}."""

import os
import ssl


def server_context() -> ssl.SSLContext | None:
    return _context(ssl.Purpose.CLIENT_AUTH)


def client_context() -> ssl.SSLContext | None:
    return _context(ssl.Purpose.SERVER_AUTH)


def _context(purpose: ssl.Purpose) -> ssl.SSLContext | None:
    """As in Ray, either side shows a certificate of the same authority, whatever host it names."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.create_default_context(purpose, cafile=os.environ["RAY_TLS_CA_CERT"])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    return context
