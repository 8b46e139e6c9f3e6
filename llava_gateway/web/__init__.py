"""HTTP, in plain ASGI: what every door shares."""
