"""`python -m token_sim.cli` is `token-sim`."""

import sys

from token_sim.cli import main

sys.exit(main())
