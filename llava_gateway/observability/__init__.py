"""Observability: request contexts, metrics, logs, traces and the usage log."""
