"""The job store: its port, its Redis implementation, and the Redis that the gateway can run by itself."""
