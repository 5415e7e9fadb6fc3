"""Checks of a host: what may lock users out, or let them in without a code."""
