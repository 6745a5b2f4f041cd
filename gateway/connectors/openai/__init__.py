"""Connectors for OpenAI-compatible servers."""
