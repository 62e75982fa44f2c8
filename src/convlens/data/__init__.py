"""Files on disk to batches of inputs and labels."""
