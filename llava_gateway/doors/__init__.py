"""Dialects. Each door parses its own requests into the core's, renders the core's answers and errors, and knows no other door."""
