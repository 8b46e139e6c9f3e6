"""From an image URL or a data URI in a request to the pixels that the model sees."""
