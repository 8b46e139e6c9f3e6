"""OpenAI's API, and vLLM's additions to it."""
