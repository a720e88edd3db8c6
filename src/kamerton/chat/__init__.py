"""Conversations in a terminal: what is said, with a model that is loaded here or behind a URL."""
