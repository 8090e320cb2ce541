"""What lies in a model's directory: names, configuration, and which files count."""
