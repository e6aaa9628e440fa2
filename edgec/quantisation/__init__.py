"""Quantisation as a part of a compilation: recipes, the guard of the accuracy, bits by layer, errors by layer."""
