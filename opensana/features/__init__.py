"""The feature cache that the transformer trains on: encoding, writing, reading, buckets."""
