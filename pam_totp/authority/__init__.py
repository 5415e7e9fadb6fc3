"""The authority of a fleet: it decides on the answers that members send."""
