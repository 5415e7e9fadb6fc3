"""Tokens for the tests of other programs: with a port each, or inside the process of the tests."""
