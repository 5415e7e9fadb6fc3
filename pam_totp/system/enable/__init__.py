"""Enable the second factor for a service: on trial until a second login confirms it."""
