"""Articles: a draft beside the live text, reviewed, published, found and read."""
