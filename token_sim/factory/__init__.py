"""The factory: batches of tokens, and seed files like those of a vendor."""
