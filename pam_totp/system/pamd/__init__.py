"""PAM service files: their text, the stack that libpam builds from them, and the effect of the stack's order. Pure."""
