"""Records to Kafka: everything that the sender's thread does."""
