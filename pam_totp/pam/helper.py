"""The helper's entry point. The relay starts it as `python3 -I -S helper.py`, with the channel on descriptor 3."""

import gc
import os
import sys

gc.disable()  # one login creates little garbage, and the user would wait for the collection
sys.dont_write_bytecode = True  # the caller's limit on file sizes could truncate bytecode files
os.umask(0o077)
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

try:
    from pam_totp.pam.inheritance import reset_inherited_state

    reset_inherited_state()
    from pam_totp.pam.helper_main import main
except (ImportError, OSError):  # restart, because an upgrade might have replaced the package between two imports
    if sys.argv[1:]:
        raise
    os.execv(sys.executable, [sys.executable, "-I", "-S", os.path.abspath(__file__), "again"])  # noqa: S606

main()
