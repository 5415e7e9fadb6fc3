"""The programs of `make demo`, `make fleet-demo` and `make portal`. They write to a temporary folder only."""
