"""The lectures' algorithms as plain tensor code."""
