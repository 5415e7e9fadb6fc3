"""The factory: batches of tokens, and the seed files that a vendor ships with them."""
