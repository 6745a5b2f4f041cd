"""The gateway's own HTTP pages: metrics, liveness, readiness, status."""

from gateway.api.app import serve_api

__all__ = ["serve_api"]
