"""The pure core: functions that depend only on their arguments.

Rules:
1. A core module never reads the clock, random numbers, files or the environment. Callers pass these as arguments.
2. A core module imports only other core modules and a few modules of the standard library.
3. A core function returns a refusal as a value, instead of raising an exception.

tests/test_layout.py enforces rules 1 and 2.
"""
