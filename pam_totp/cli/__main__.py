"""`python3 -m pam_totp.cli`, where nothing is installed."""

import sys

from pam_totp.cli import main

sys.exit(main())
