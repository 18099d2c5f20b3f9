"""A ServiceX endpoint for a laptop or a test, which the standard ``servicex`` client talks to."""
