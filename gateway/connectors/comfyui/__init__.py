"""Connectors for ComfyUI."""
