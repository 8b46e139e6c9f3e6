"""HTTP in plain ASGI: reading requests, writing responses, middleware."""
