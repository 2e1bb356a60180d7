"""Reads files of records: JSON, tables and tar shards, on disks and in stores, in the forms of other programs."""
