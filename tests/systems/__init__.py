"""Bare roots, made by debootstrap, of the systems that the README names, and the steps of `make systems` in them."""
