"""Experiments: what belongs to one chapter, on top of the core."""
