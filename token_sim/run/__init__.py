"""A token alive: the simulation, its loop in real time, its owner's socket and its file."""
