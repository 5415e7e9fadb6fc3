"""Checks of a host: what may keep users out, or let them in without a code."""
