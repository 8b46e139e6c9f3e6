"""LLaVA behind an OpenAI-compatible API, on vLLM."""

__version__ = "0.1.0"
