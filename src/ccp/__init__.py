"""An open Contract Certificate Pool for Plug&Charge."""

__version__ = "0.1.0"
