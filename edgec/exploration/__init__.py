"""The search for versions of a model that are worth having, and the front of those that nothing beats."""
