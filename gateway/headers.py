"""Headers by which a gateway tells a service who asks, under which lease, and whom it believes to call (pure leaf)."""

HEADER_WORKER = "x-gateway-worker"
HEADER_EPOCH = "x-gateway-epoch"
HEADER_EXPECTED_INSTANCE = "x-gateway-instance"
HEADER_EXPECTED_ENDPOINT = "x-gateway-endpoint"
