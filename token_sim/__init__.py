"""token_sim: a hardware token on a serial port, to try and to test second factors with."""

__version__ = "0.1.0"
