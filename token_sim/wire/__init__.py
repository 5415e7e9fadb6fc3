"""The serial line: the protocol, and the ports that carry it."""
