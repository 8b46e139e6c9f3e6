"""The core: from a request to a stream of deltas."""
