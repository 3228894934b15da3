"""What survives a restart: the database, the queue of inputs, blobs, uploaded objects, logs."""
