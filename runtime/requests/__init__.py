"""Requests and results: data, files, resuming."""
