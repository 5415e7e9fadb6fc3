"""The watchdog, a separate process that waits for the end of a trial: `python3 -I -S watchdog.py SERVICE`.

With `--left-over` instead of SERVICE, the process rolls back every trial that has no watchdog.

Rules:
- This process survives the end of the terminal and the session.
- The process rolls back the change before it exits on SIGTERM, which systemd sends at a shutdown.
"""

import os
import signal
import sys

sys.dont_write_bytecode = True
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.path.dirname(_PACKAGE))

from pam_totp.system.enable.trial import roll_back_left_over, watch  # noqa: E402  sys.path is set first

if __name__ == "__main__":
    stop: list[object] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    os.umask(0o022)
    if sys.argv[1:] == ["--left-over"]:
        roll_back_left_over()
    else:
        watch(sys.argv[1], stop)
