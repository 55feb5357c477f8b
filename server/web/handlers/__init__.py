"""HTTP in, HTTP out: one module for each group of URLs."""
