"""Messages of the gRPC services we speak: own ``.proto`` files and the code generated from them.

The packages are ours on purpose: only field numbers, types and method paths travel on the wire, and two definitions of
``inference.ModelInferRequest`` in one process (a connector of somebody else may import its vendor's client) would not
load. ``python -m protocols.proto.generate`` writes the code anew; a test compares.
"""
