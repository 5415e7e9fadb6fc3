"""The token itself: chip, memory, clock, battery and display. Pure: time is an argument."""
