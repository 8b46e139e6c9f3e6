"""Values that API keys keep between requests."""
