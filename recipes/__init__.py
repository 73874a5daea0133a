"""Recipes: a collection, models, and the stages that train them, in one YAML file."""
