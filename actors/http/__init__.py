"""The HTTP side of the endpoint: an ASGI application over any backend that can classify."""
