"""Tokens for the tests of other programs: on a port of their own, or inside the process."""
