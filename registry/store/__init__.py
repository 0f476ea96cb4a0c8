"""The object store, in a folder or in S3, and what is stored in it directly: blobs and Delta tables."""
