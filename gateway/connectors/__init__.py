"""Connectors: how one kind of service is run, asked and cancelled over one protocol."""
