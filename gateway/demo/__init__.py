"""`tracer demo`: four synthetic days of a bank's support traffic through a real gateway."""
