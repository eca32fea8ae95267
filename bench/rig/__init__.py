"""What the figures are measured with: a world of signed messages, servers, loads, ceilings, and the tables."""
