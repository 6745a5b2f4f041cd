"""Connector for the Stable Diffusion web UI of AUTOMATIC1111 and servers of its interface."""
