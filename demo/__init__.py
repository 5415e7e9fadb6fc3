"""What a newcomer runs first: `make demo` and `make portal`. Both need a built tree, and change nothing outside a
temporary folder."""
