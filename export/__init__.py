"""Writes a trained detector as a file that runs without this project."""
