"""Adapters on disk: their files, their proof, their manifest, and which one latest points to."""
