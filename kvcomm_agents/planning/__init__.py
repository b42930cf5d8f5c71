"""Planning: which tokens of a prompt are placed and which are computed, why, and what that cost."""
