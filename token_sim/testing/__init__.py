"""Tokens for the tests of other programs: each on a port, or inside the process."""
