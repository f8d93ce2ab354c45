"""A list of inputs on the straight line: each is looked up and kept by itself, those missing are asked for together."""
