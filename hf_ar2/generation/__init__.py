"""A model writes questions for the passages of a corpus; those that retrieve their passage become queries."""
