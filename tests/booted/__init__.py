"""Tests on a booted machine, with systemd as its first process and the unchanged units."""
