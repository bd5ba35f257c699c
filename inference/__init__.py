"""Trained detectors on images that are not a data set."""
