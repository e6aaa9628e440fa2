"""Samples from files: arrays by name, or a folder of images with a recipe."""
