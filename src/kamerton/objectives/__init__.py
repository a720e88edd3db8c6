"""What is optimised: one short file an algorithm."""
