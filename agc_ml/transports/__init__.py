"""Bytes of remote files: XRootD, HTTP and others behind one interface."""
