"""Figures, drawn from reports; matplotlib is imported only when one is drawn."""
