"""LLaVA's own serving stack: its controller and its worker, and this server as the worker of another controller."""
