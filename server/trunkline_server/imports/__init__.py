"""Imports: any CSV in, exactly once, every row accounted for."""
