"""The OpenAI API, with vLLM's additions."""
