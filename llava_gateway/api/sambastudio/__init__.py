"""SambaStudio's predict API for LLaVA endpoints."""
