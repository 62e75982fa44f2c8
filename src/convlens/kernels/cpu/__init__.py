"""Kernels compiled for the host through llvmlite."""
