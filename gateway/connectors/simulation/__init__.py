"""The simulated service: its wire contract and the connectors that speak it."""
