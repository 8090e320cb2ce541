"""Language models: found, loaded, evaluated on text, converted and inspected."""
