"""PAM service files: their text, the stack that libpam makes of them, and what its order means. Pure."""
