"""The asynchronous client, from which `trunkline._sync` is made (`python -m tools.unasync`)."""
