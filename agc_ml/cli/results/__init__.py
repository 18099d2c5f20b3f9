"""Commands on run directories and histograms: ``agc-ml show``, ``plot``, ``fit`` and others."""
