"""Helpers of the commands that call a server: `chat`, `batch` and `bench`."""
