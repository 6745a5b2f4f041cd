"""Connectors for servers of the Open Inference Protocol, version 2: MLServer, KServe, Triton and others."""
