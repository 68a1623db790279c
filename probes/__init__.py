"""Probes: one module per kind, and the protocol clients that they share.

Nothing here depends on Prometheus, the scheduler or the web: a probe gets its frozen
settings and a context, and returns a frozen verdict.
"""
