"""Other programs' formats: text in, tokens out, and back."""
