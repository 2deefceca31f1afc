"""The site's own Sphinx extensions: mathematics without a network, docstrings as this project writes them, identities."""
