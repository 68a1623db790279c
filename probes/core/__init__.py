"""The basis of all kinds of probe, independent of any protocol."""
