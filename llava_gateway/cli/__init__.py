"""The `llava-gateway` command. Each subcommand is a module with `main(arguments)` and `make_parser()`."""
