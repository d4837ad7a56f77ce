"""selfstudy: run, search and compare self-supervised vision studies."""

__version__ = "0.6.0"
