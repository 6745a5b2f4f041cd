"""Dialects of the simulated service: how ComfyUI, A1111 and others speak, over the one behaviour core."""
