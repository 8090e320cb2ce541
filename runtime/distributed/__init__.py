"""Processes: how they are started, what their launcher says, and how they form replicas."""
