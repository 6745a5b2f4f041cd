"""The worker between Redis and the services: claims jobs, runs them, records one completion each."""
