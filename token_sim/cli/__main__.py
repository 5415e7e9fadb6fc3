"""Run the command line from a source directory: `python -m token_sim.cli`."""

import sys

from token_sim.cli import main

sys.exit(main())
