"""A trained model to portable files, behind a parity gate."""
