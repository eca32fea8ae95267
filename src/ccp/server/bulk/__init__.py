"""Many contracts at a time: `ccp import` and `ccp export`, over JSON Lines of what PUT takes.

lines       reading files, folders and standard input in chunks; writing an export
checkpoint  how far an import has come, on disk
work        a worker process: checks chunks of lines as PUT does
importing   the process that reads, hands out, writes and reports
exporting   contracts as lines
"""
