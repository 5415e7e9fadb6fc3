"""What takes a machine that boots: systemd as its first process, and the units as they are."""
