"""Deliberately broken variants of the shipped scripts and code, and the hunt for them with the simulated fleet."""
