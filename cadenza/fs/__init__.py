"""Images: a recipe becomes layers, and layers become a root file system."""
