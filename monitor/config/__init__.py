"""The configuration: its models, and reading it from a YAML file with every mistake named by its line."""
