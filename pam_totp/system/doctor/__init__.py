"""Checks of a host: find problems that may lock users out, or let them in without a code."""
