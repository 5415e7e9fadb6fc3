"""The systems that the README names, bare: roots made by debootstrap, and what is run in them by `make systems`."""
