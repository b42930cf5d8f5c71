"""Backends: engines that execute plans."""
