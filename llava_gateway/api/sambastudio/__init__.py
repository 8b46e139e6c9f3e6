"""SambaStudio's predict API."""
