"""The programs of `make demo`, `make fleet-demo` and `make portal`. The programs write to a temporary folder only."""
