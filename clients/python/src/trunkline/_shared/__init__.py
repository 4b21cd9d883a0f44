"""What the asynchronous and the blocking client have in common."""
