"""Demonstrations: `make demo` and `make portal`. Both need a built tree, and write to a temporary folder only."""
