"""Run the command line from a source folder: `python3 -m pam_totp.cli`."""

import sys

from pam_totp.cli import main

sys.exit(main())
