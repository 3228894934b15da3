"""The vocabulary: ids, errors, clock, resources, configuration. Imports nothing else of ours."""
