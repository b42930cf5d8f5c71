"""Measurements: how far reuse diverges from a dense prefill, and at what cost."""
