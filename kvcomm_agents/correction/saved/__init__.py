"""What was learned, in a folder: files, their manifest, and who may write them."""
