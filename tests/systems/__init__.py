"""Bare roots of the systems that the README names, created by debootstrap, and the steps of `make systems` in them."""
