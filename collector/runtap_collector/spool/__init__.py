"""The disk, while Kafka is away."""
