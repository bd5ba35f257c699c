"""report.html: the evaluated images in one file, to look at in a browser."""
