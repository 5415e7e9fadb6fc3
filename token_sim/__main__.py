"""The entry point of `python -m token_sim`."""

import sys

from token_sim.cli import main

sys.exit(main())
