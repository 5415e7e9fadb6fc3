"""Figures: counters of a running service, the state of a store, and the statistics of a log."""
