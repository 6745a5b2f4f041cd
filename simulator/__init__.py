"""The faithful, misbehaving twin of the services a gateway talks to."""
