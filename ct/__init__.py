"""Continuous training on Ray."""
