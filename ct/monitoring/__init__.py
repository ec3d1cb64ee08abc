"""Drift, live quality, causes, alerts."""
