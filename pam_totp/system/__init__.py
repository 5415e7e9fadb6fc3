"""The machine around the module: pam.d files, sshd, their rehearsal, and what may be wrong with them.

The law: nothing here reads a key; whoever could lose the way in is told before anything changes; what was changed can
be taken back without free space, without a network and without the terminal that it was started from.
"""
