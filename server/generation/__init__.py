"""Who does the work: generators, and the workers that run them."""
