"""Filesets from elsewhere: CERN Open Data records, Rucio, files on servers.

::

    NAME=WHAT ... -> assembly -> opendata | rucio | globs -> files -> Fileset -> catalogue.save

A module for each source, with one function that takes pairs ``NAME=WHAT`` and gives a `Fileset`.
The client library of a source is an extra, and is imported when the source is asked.
"""
