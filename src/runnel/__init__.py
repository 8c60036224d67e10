"""Distributed, strictly ordered event processing on Redis Streams."""
