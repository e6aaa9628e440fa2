"""The Python binding of libedgert."""
