"""aiokafka's errors that others handle, so that nobody else need import it."""

from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

__all__ = ["KafkaError", "UnknownTopicOrPartitionError"]
