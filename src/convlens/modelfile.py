"""The self-describing model file: weights, architecture, preprocessing, class names, evaluations."""
