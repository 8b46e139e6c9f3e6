"""Who may ask, for which models and how much: keys in a file of digests, and their limits."""
