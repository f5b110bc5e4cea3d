"""A real Apache Kafka from Python packages alone. Knows nothing of runtap."""
