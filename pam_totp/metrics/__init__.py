"""Metrics of a running service and of a store for Prometheus, and statistics of a log and of a store."""
