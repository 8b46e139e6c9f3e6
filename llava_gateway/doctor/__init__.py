"""The checks of `llava-gateway doctor`: whether this machine can run a server."""
