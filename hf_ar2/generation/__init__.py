"""Questions for texts that have none: written by a model, passage by passage, and kept where they find it again."""
