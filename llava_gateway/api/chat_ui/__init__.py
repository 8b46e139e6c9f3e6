"""The chat page, for browsers."""
