"""What the user imports, by way of the package's own name. Loads the standard library alone."""
