"""Values of API keys that outlive a request, with a time to live."""
