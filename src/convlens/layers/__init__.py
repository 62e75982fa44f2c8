"""Modules that hold parameters and call the operators."""
