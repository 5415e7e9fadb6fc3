"""The helper: one login in a process of its own, started by the relay as `python3 -I -S helper.py` with the channel
on descriptor 3. Every import comes before the privileges go, and no byte of a store is read before they have gone.
"""

import os
import sys

sys.dont_write_bytecode = True  # as root, under whatever umask and limits the caller left us
os.umask(0o077)
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pam_totp.pam.helper_main import main  # noqa: E402  the path had to be set first

main()
