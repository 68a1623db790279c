"""Probes: what mailsonde can check, one module a kind, and the protocol clients that they share.

Nothing here knows of Prometheus, of the scheduler or of the web: a probe gets its
frozen settings and its tools, and returns a frozen verdict.
"""
