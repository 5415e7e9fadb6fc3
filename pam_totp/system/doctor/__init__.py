"""Checks of a host for problems that lock users out, or let them in without a code."""
