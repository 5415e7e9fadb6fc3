"""The pure core: values in, values out.

Rules:
1. The time, random numbers, files and the environment are arguments. A core module never reads them itself.
2. A core module imports only other core modules and a few modules of the standard library.
3. A refused answer is a result, not an exception.

tests/test_layout.py enforces rules 1 and 2.
"""
