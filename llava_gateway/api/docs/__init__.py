"""The description of the served APIs: the OpenAPI document, and a page for people."""
