"""Creates a first configuration: finds a domain's mail servers, tries them, and writes the file."""
