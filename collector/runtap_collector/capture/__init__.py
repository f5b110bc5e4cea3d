"""LangChain's arguments to records: what runs in every callback."""
