"""The cache that the transformer trains on: encoding a data set, writing, reading, buckets."""
