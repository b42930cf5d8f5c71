"""Correction: donor KV to what it should be where it is read, learned from anchors."""
