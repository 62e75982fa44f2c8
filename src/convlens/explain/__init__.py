"""A model and a batch to plain records of what happened inside."""
