"""Declarations: parties, peers and trust anchors in a file, applied as a whole (`ccp apply`).

`reader` reads a file, `differences` compares it with the database, `applying` makes the changes in one transaction,
`writer` writes the present state as a file. See docs/declaring.md.
"""
