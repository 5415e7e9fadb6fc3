"""Other programs' token files: each format is a module, and `registry` lists them."""
