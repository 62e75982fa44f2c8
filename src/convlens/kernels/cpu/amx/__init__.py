"""Dense convolution on AMX tiles: float32 operands as sums of bfloat16 parts, every pass an implicit product."""
