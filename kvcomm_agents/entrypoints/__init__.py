"""Entrypoints: the ways in, for chat clients and for the command line."""
