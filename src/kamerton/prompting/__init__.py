"""Prompting: what is put in front of a question, and how."""
