"""Queries of ServiceX requests, translated to plans of columns and cuts."""
