"""Simulated services: thin shells that put one behaviour on one protocol."""
