"""Tools of the benchmarks: signed messages, servers, load generators, upper bounds, and tables."""
