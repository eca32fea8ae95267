"""Bulk import and export: `ccp import` and `ccp export`, with JSON Lines in the format of a PUT body.

lines           read files, folders and standard input in chunks
importer        the import: reads chunks, has them checked by workers, writes contracts, saves its progress
input_reader    the thread that reads ahead
worker_pool     the worker processes, as the import sees them
import_worker   a worker process: checks lines as a PUT does
messages        what an import and its workers send each other
report          the file of rejected lines
checkpoint      the progress of an import, on disk
exporter        writes contracts as lines
"""
