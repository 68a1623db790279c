"""Handing messages over, and watching them arrive."""
