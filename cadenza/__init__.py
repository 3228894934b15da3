"""Cadenza: serverless compute on machines that you own."""

__version__ = "0.1.0"
