"""What can go wrong in a demo. A leaf below `gateway.errors`."""

from gateway.errors import GatewayError


class DemoError(GatewayError):
    """A process of the demo did not do what it should; the message ends with the tail of its log."""
