"""The steps that enable the second factor for a service. The change is on trial until a second login confirms it."""
