"""A template of the tests' own for Auto3DSeg; its loss lines behave as those of segresnet."""
