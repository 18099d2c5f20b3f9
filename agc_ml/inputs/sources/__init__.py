"""Filesets from elsewhere: CERN Open Data records, Rucio, files on servers.

::

    NAME=SOURCE ... -> assembly -> opendata | rucio | globs -> files -> Fileset

Each source has one module with one function, which takes pairs ``NAME=SOURCE`` and returns a
`Fileset`. The client library of a source is an extra, imported when the source is used.
"""
