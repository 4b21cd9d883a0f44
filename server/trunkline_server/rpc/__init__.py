"""What every call passes through before it reaches a slice."""
