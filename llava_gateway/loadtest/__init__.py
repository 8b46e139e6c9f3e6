"""A load test for OpenAI-compatible servers."""
