"""The member of a fleet: a host that holds no record, and asks an authority about each answer."""
