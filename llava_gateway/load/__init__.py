"""Load on an OpenAI-compatible server, and what it says about it. Nothing here knows of the server's side."""
