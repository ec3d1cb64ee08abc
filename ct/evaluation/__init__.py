"""Metrics, intervals and the gate between candidate and champion."""
