"""What operators and administrators ask of a running server."""
