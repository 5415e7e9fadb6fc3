"""The helper's entry point. The relay starts it as `python3 -I -S helper.py`, with the channel on descriptor 3."""

import os
import sys

sys.dont_write_bytecode = True  # the umask and the limits are the caller's
os.umask(0o077)
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pam_totp.pam.helper_main import main  # noqa: E402  the path had to be set first

main()
