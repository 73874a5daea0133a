"""Model cards: what a model is for, how it is used, what it reaches, how it was trained."""
