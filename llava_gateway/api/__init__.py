"""The APIs that clients use, one dialect each. A dialect parses requests, and renders deltas and errors."""
