"""Measurements of the gateway; ``python -m benchmarks list`` shows them. No result is ever asserted in the checks."""
