"""The pure core: values in, values out.

Rules:
1. The time, random numbers, files and the environment are arguments. A core module never reads them itself.
2. It imports only other core modules and a few of the standard library. tests/test_layout.py enforces both rules.
3. A refused answer is a result, not an exception.
"""
