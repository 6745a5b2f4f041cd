"""Regression seeds: each once broke a promise, a bound or the simulation itself; the plan generator keeps them alive.

A seed means what the generator draws from it. When the generator changes, a seed that mattered is kept as a plan
instead (``simulator shrink`` prints one).
"""

from __future__ import annotations

#: Failed when the fleet was first explored; beliefs kept while a job was given back were among the reasons.
FOUND_BUGS = (7, 8, 12, 14, 15, 26)
#: Many kinds of trouble at once, among them settlements that come too late.
BUSY = (21,)
SEEDS = (*FOUND_BUGS, *BUSY)
