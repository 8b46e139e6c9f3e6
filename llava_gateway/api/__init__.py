"""The APIs that clients speak, one dialect each. A dialect parses its requests into `ChatRequest`s, and renders `Delta`s and errors."""
