"""Demonstrations: `make demo` and `make portal`. Both need `make build`, and write to a temporary folder only."""
