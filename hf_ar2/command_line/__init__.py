"""The commands of `hf-ar2`: their arguments, and what they do."""
