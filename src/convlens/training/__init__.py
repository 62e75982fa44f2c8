"""Recipe, loop, checkpoint, search."""
