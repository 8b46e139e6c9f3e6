"""Images: from a URL or data URI in a request to the small square that the model sees."""
