"""What every face shows, as plain data: names carry units, unknown is null."""
