"""Tests that need a machine that boots: systemd as its first process, and the unchanged units."""
