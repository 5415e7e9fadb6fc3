"""The pure core: values in, values out.

Rules:
1. A core module reads no clock, no random number, no file and no environment. They are arguments.
2. It imports other core modules, and a short list of the standard library's. tests/test_layout.py enforces both.
3. A refused answer is a result, not an exception.
"""
