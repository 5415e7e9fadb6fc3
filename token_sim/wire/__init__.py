"""The serial line: the protocol, and the ports on which it can be reached."""
