"""From the picture of a schedule to programs: loads, transfers, their order, and buffers."""
