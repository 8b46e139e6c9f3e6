"""Videos: from a URL or a `data:` URI to the frames that the model sees."""
