"""The configuration: its models, and a reader for YAML files that reports every mistake with its line."""
