"""Findings about domains: pure functions over gathered records."""
