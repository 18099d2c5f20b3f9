"""Code of processors: its identity, the values it refers to, the modules it imports."""
