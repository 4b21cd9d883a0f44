"""The bench's method behind the product's own wrapper."""
