"""Waits for the end of a trial, in a process of its own: `python3 -I -S watchdog.py SERVICE`, or `--left-over`.

The law: nothing that ends a terminal or a session ends this; told to end (a shutdown), it takes the change back first.
"""

import os
import signal
import sys

sys.dont_write_bytecode = True
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.path.dirname(_PACKAGE))

from pam_totp.system.enable.trial import take_back_left_over, watch  # noqa: E402  the path had to be set first

if __name__ == "__main__":
    told: list[object] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    os.umask(0o022)
    if sys.argv[1:] == ["--left-over"]:
        take_back_left_over()
    else:
        watch(sys.argv[1], told)
