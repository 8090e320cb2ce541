"""What lies in a model's directory, and where models are found."""
