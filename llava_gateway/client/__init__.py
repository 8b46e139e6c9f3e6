"""What the commands that call a server share."""
