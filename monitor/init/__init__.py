"""Making a first configuration: finding a domain's mail servers, trying them, writing the file."""
