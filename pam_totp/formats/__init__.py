"""The token files of other programs: one module for each format. `registry` lists the formats."""
