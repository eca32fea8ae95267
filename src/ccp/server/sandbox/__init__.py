"""Pools for trying things out: a sandbox directory, a pool in this process, and the demo. Uses `ccp.testing`."""
