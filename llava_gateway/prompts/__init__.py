"""Prompts: chat templates, and the token ids that they give."""
