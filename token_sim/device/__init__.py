"""The token itself: chip, memory, clock, battery and display, without input or output."""
