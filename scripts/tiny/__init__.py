"""How the embedded models are trained and judged. Not part of the installed package."""
