"""token_sim: a simulated hardware token on a serial port, for trials and tests of second factors."""

__version__ = "0.1.0"
