"""Putting the second factor in front of a service, on trial until a second login confirms it."""
