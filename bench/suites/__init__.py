"""One module per bench: its name is the bench's, its docstring's first line the description."""
