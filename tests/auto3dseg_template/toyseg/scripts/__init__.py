"""Generation, training and inference of the template."""
