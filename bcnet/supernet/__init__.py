"""What a width-searchable network is: its space, its paths, the methods that train it, and its score."""
