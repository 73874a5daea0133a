"""Readers of collections, one file per format."""
