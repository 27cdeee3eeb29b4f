"""Thin handlers, one module per surface."""
