"""Tell the story of one simulated run: as text, as a page with swim-lanes, and as OpenTelemetry spans."""
