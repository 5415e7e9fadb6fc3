"""A running token: the simulation, its loop in real time, the owner's socket, and the token file."""
