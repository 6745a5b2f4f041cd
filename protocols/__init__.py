"""Transport adapters (HTTP, WebSocket, gRPC); they know no service."""
