"""What tests share: guarded arrays and the parity battery."""
