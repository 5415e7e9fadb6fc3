"""The parts of a token: chip, memory, clock, battery and display. The package does no input or output."""
