"""`make demo`: the main job on real programs. See `__main__` for what happens in which order."""
