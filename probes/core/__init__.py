"""What every kind of probe stands on; knows no protocol."""
