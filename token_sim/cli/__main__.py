"""The entry point of `python -m token_sim.cli`."""

import sys

from token_sim.cli import main

sys.exit(main())
