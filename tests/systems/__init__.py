"""Bare roots of the systems that the README names, made by debootstrap, and the steps of `make systems` in them."""
