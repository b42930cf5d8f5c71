"""Correctors: donor KV at a slot -> the KV a dense prefill would have given there."""

from .base import Correction, Corrector, Example, Slot

__all__ = ["Correction", "Corrector", "Example", "Slot"]
