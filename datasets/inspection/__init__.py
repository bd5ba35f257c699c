"""Looks at a data set before a training: problems, statistics, and a corrected copy."""
