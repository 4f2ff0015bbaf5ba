"""Classic visual question answering, reproduced: SAN and HieCoAtt, on a bare GPU server."""

__version__ = "0.1.0"
