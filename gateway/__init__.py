"""Online: one request, from socket to answer."""
