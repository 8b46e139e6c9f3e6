"""Engines: the protocol (`base`), the supervisor that restarts a dead engine, and vLLM."""
