"""Artifacts in places that fsspec reaches: a folder, S3, Google Cloud Storage, the Hugging Face hub.

A *mirror* is such a place, laid out as a store is: ``artifacts/KIND/SERIES/DIGEST`` holds an artifact's files, and its
manifest, which is written last. A copy of a store's folder is a mirror too.
"""
