"""Values that clients leave with the server for a while: stored responses and files."""
