"""How much of each probe's history the ledger keeps."""

RUNS_KEPT = 100
"""How many of the latest runs, and of the latest failed runs, are kept for each route."""

ROUTES_KEPT = 50
"""How many routes of a probe are kept, the latest to run: twice as many as it can have at a time."""
