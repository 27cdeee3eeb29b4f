"""Offline: from traces to a certified policy, and the record of both."""
