"""Stats: what happened in an organisation, as numbers that say how final they are."""
