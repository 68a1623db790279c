"""Probes: what mailsonde can check, one module a kind, and the protocol clients that they share.

Nothing here knows of Prometheus, the scheduler or the web: a probe gets its frozen
settings and a context, and returns a frozen verdict.
"""
