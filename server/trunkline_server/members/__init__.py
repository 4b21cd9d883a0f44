"""Members: validate, register, search, history."""
